"""The agent loop: turns, sessions, prompts and typed events over a memory bank."""
