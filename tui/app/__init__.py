"""The full-screen app: a conversation that shows its memories, and a browser of the bank. Loaded late."""
