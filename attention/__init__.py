"""The model: weights, decoder, reading of paged memories, routing scores. Knows no bank."""
