"""A recaller that is warm has nothing left to make for its first question."""

from pathlib import Path

import pytest

from mnemos.attention.models import LanguageModel
from mnemos.memory.bank import MemoryBank


@pytest.mark.model
def test_the_first_question_packs_no_weights(
    language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = language_model.decoder.compiled
    if compiled is None:
        pytest.skip("no compiled steps on this machine")
    monkeypatch.setattr(compiled, "_model", None)
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.recaller(language_model).warm()
        assert compiled._model is not None
        bank.remember("The boat to Texel leaves at noon.")
        (found,) = bank.search("When does the boat leave?", model=language_model)
        assert found.memory.text == "The boat to Texel leaves at noon."
