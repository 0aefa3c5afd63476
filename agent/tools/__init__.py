"""Tools that a model can call: their schemas, the formats of calls, running them, and what they returned."""
