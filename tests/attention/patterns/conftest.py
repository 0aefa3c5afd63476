"""Other people's attention, to compare with."""

import warnings
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def x_transformers() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it scripts a function as it is imported
        import x_transformers
    return x_transformers
