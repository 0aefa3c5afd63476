"""The bank on disk: catalog, frames, keys, erase. Knows bytes and rows, never tensors."""
