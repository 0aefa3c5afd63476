"""Training of small hybrid models: data, losses, schedules, checkpoints and the loop over them."""
