"""The kernels in plain torch, with the same signatures: what they are tested against, and the path on CPU."""
