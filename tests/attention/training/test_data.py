"""Samples: what is asked can be known from the evidence, and from nothing else."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.attention.patterns.mixer import PADDING
from mnemos.attention.training.batches import IGNORED, make_batch
from mnemos.attention.training.needle import NeedleSizes, NeedleTask
from mnemos.attention.training.text_data import TextData
from mnemos.errors import InvalidTextError, UsageError


@settings(max_examples=60, deadline=None)
@given(
    facts=st.integers(1, 3), spare=st.integers(0, 5), keys=st.integers(3, 40), more=st.integers(0, 90),
    index=st.integers(0, 2**40),
)  # fmt: skip
def test_a_needle_is_in_the_evidence_and_nowhere_else(
    facts: int, spare: int, keys: int, more: int, index: int
) -> None:
    sizes = NeedleSizes(document=2 * facts + spare, facts=facts, keys=keys, values=7, noise=5)
    length = sizes.document + 2 * facts + more
    sample = NeedleTask(sizes, seed=1).sample(index, length)
    *documents, question = sample.documents
    assert sum(len(document) for document in sample.documents) <= length
    assert sum(sample.evidence) == 1 and len(sample.evidence) == len(documents)
    for key, value, target in zip(question[::2], question[1::2], sample.targets[-1][::2], strict=True):
        assert value == target
        holding = [number for number, document in enumerate(documents) if (document == key).any()]
        assert holding == [sample.evidence.index(True)]
        place = int((documents[holding[0]] == key).nonzero()[0, 0])
        assert documents[holding[0]][place + 1] == value
    asked = sample.targets[-1] != IGNORED
    assert torch.equal(asked, sample.asks)


def test_samples_follow_from_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghijklmnopqrstuvwxyz" * 9, encoding="utf-8")
    for source in (NeedleTask(NeedleSizes(), seed=3), TextData([path], document=13, seed=3)):
        one, same, other = (make_batch([source.sample(index, 200)]) for index in (5, 5, 6))
        assert torch.equal(one.tokens, same.tokens) and not torch.equal(one.tokens, other.tokens)
    unseen = NeedleTask(NeedleSizes(), seed=3, stream=1).sample(5, 200)
    assert not torch.equal(unseen.documents[0], NeedleTask(NeedleSizes(), seed=3).sample(5, 200).documents[0])


def test_of_text_the_passage_right_before_is_the_evidence(tmp_path: Path) -> None:
    text = "".join(chr(65 + number % 50) for number in range(400))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    data = TextData([tmp_path / "a.txt"], document=16, seed=0)
    for index in range(20):
        sample = data.sample(index, 70)
        assert [len(document) for document in sample.documents] == [16, 16, 16, 16]
        before = sample.documents[sample.evidence.index(True)]
        joined = bytes(torch.cat((before, sample.documents[-1])).tolist()).decode()
        assert joined in text and sum(sample.evidence) == 1
        assert sample.targets[0].tolist() == [*sample.documents[0][1:].tolist(), IGNORED]


def test_of_a_question_only_the_answer_is_a_target(tmp_path: Path) -> None:
    line = {"documents": ["x" * 20, "yz"], "question": "which?", "answer": "yz", "evidence": [1]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line), encoding="utf-8")
    sample = TextData([tmp_path / "a.jsonl"], document=16, seed=0).sample(0, 64)
    assert [len(document) for document in sample.documents] == [16, 4, 2, 8]
    assert sample.evidence == (False, False, True)
    assert sample.targets[-1].tolist() == [IGNORED] * 5 + [*b"yz", IGNORED]
    assert sample.asks.tolist() == [True] * 6 + [False] * 2
    short = TextData([tmp_path / "a.jsonl"], document=16, seed=0).sample(0, 12)
    assert short.evidence == (True,)  # what holds the answer is the last to be left out


def test_batches_are_padded() -> None:
    task = NeedleTask(NeedleSizes(document=4, facts=1), seed=0)
    batch = make_batch([task.sample(0, 14), task.sample(1, 6)])
    assert batch.positions.tolist()[1] == [0, 1, 2, 3, 0, 1] + [PADDING] * 8
    assert batch.evidence.shape == (2, 3) and batch.evidence.sum().item() == 2
    assert not batch.asks[1, 6:].any() and (batch.targets[1, 6:] == IGNORED).all()
    with pytest.raises(ValueError, match="at least one"):
        make_batch([])


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"text": 4}', '{"documents": [], "question": "", "answer": "a", "evidence": []}'],
)
def test_what_is_no_data_is_refused_without_its_words(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "secretly"}\n' + line, encoding="utf-8")
    with pytest.raises(InvalidTextError, match="line 2") as caught:
        TextData([tmp_path / "a.jsonl"], document=4, seed=0)
    assert "secretly" not in str(caught.value)


def test_too_little_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc", encoding="utf-8")
    with pytest.raises(UsageError, match="no text longer"):
        TextData([tmp_path / "a.txt"], document=8, seed=0)
    with pytest.raises(UsageError, match="need documents of 8"):
        NeedleTask(NeedleSizes(document=7, facts=4), seed=0)
    (tmp_path / "a.txt").write_text("abc" * 9, encoding="utf-8")
    with pytest.raises(UsageError, match="two documents"):
        TextData([tmp_path / "a.txt"], document=8, seed=0).sample(0, 15)
