"""Plain forms of the patterns, one module each: `mix(mixer, x, positions) -> y` with the mixer's own weights.

A twin goes token by token and uses none of the pattern's own blocks, chunks, masks or fused kernels. In
float64 it is the truth that the pattern is tested against, gradients included.
"""
