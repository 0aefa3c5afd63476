"""Families of attention behind one interface: `mixer.py` is the contract, `registry.py` the list."""
