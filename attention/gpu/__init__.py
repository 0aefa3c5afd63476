"""Paged memories on a device: the pools, the copies into them, and decoding over them."""
