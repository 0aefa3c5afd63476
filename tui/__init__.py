"""The `mnemos` command and what people see on a screen."""
