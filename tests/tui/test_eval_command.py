"""`mnemos eval recall` at the command line."""

import json
from pathlib import Path

import pytest
from tests.tui.conftest import Command

FIELDS = {
    "recall", "hit", "by_category", "questions", "memories", "encode_tokens_per_s", "route_ms_p50",
    "route_ms_p95", "conversations", "unit", "router", "rounds", "merged", "file", "model",
}  # fmt: skip


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    conversation = {
        "id": "one",
        "memories": [{"id": "a", "text": "The quince is ripe."}, {"id": "b", "text": "It rains."}],
        "questions": [{"question": "Is the quince ripe?", "evidence": ["a"]}],
    }
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps(conversation) + "\n")
    return path


def test_recall_of_a_file_without_a_model(mnemos: Command, talk: Path, tmp_path: Path) -> None:
    ranks = tmp_path / "ranks.jsonl"
    ran = mnemos(
        "eval", "recall", str(talk), "--router", "lexical", "--k", "1,2", "--export", str(ranks), "--json",
        MNEMOS_MODEL="/nonexistent/model.gguf",
    )  # fmt: skip
    assert ran.code == 0
    assert set(ran.json) == FIELDS
    assert ran.json["recall"] == {"1": 1.0, "2": 1.0} and ran.json["router"] == "lexical"
    assert json.loads(ranks.read_text())["ranks"] == {"a": 1}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--k", "0"], 2),
        (["--k", "1,many"], 2),
        (["--unit", "chapter"], 2),
        (["--conversations", "0"], 2),
        (["--export", "/nonexistent/ranks.jsonl"], 2),
    ],
)
def test_what_it_cannot_do(mnemos: Command, talk: Path, options: list[str], code: int) -> None:
    ran = mnemos("eval", "recall", str(talk), "--router", "lexical", *options)
    assert (ran.code, ran.out) == (code, "")


def test_a_file_that_is_not_there(mnemos: Command, tmp_path: Path) -> None:
    ran = mnemos("eval", "recall", str(tmp_path / "none.jsonl"), "--router", "lexical")
    assert ran.code == 1 and "no file" in ran.err


@pytest.mark.parametrize("below", ["", "sub"])
def test_banks_can_not_be_kept_in_a_file(mnemos: Command, talk: Path, below: str) -> None:
    ran = mnemos("eval", "recall", str(talk), "--router", "lexical", "--path", str(talk / below), "--json")
    assert (ran.code, ran.json["error"]["type"]) == (2, "UsageError")
    assert "--path" in ran.err and ran.err.count("\n") == 1
