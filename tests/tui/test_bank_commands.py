"""`bank rekey`, `bank audit`, `bank verify --repair`, `memory receipt ...` as people run them."""

from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "store" / "fixtures"
