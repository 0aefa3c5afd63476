"""The memory bank as people use it: remember, recall, page in, forget."""
