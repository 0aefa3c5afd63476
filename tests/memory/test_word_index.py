"""Vectors made of memories' words, in a bank: kept with each memory, made when missing, gone when it is."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from mnemos import MemoryBank
from mnemos.attention.embedder_files import EMBEDDER_ENV, GRANITE, MINILM, fetch_embedder
from mnemos.attention.memory_codec import decode_route
from mnemos.attention.models import LanguageModel
from mnemos.memory import router, word_index
from mnemos.memory.word_index import WordIndex
from mnemos.store.records import MemoryDraft

pytestmark = pytest.mark.model
TALK = [
    ("Ann", "I drink a cup of tea each morning."),
    ("Ben", "The van broke down near the harbour."),
    ("Ann", "My sister is a nurse in Leeds."),
    ("Ben", "We painted the kitchen yellow."),
    ("Ann", "The dog chewed my left shoe."),
]
QUESTION = "Which beverage?"  # shares no word with any of them


@pytest.fixture(scope="module")
def model(tiny_model: LanguageModel) -> LanguageModel:
    """A tiny model that knows nothing, calibrated to use the sentence encoder."""
    fetch_embedder()
    weights = {"lexical": 1.0, "mass": 0.0, "speaker": 0.5, "vector": 1.0}
    calibration = tiny_model.calibration.model_copy(update={"embedder": GRANITE.name, "weights": weights})
    return replace(tiny_model, calibration=calibration)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def talk(bank: MemoryBank) -> list[str]:
    made = bank.remember_many([MemoryDraft(text, speaker=speaker) for speaker, text in TALK])
    return [memory.id for memory in made]


def vectors_kept(bank: MemoryBank, ids: list[str]) -> list[bool]:
    routes = bank.store.get_routes("default", ids)
    return [decode_route(routes[each]).vectors is not None for each in ids]


def test_a_memory_is_found_by_what_it_means(bank: MemoryBank, model: LanguageModel) -> None:
    ids = talk(bank)
    found = bank.search(QUESTION, model=model, limit=5)
    assert found[0].memory.id == ids[0] and found[0].signals["lexical"] == 0
    assert found[0].signals["vector"] > found[1].signals["vector"]
    assert vectors_kept(bank, ids) == [True] * 5


def test_an_old_one_becomes_a_candidate(
    bank: MemoryBank, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "RECENT_CANDIDATES", 2)
    monkeypatch.setattr(router, "VECTOR_CANDIDATES", 1)
    ids = talk(bank)
    assert bank.search(QUESTION, model=model, limit=5)[0].memory.id == ids[0]


def test_a_large_namespace_is_searched_once_it_is_read(
    bank: MemoryBank, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "RECENT_CANDIDATES", 2)
    monkeypatch.setattr(router, "VECTOR_CANDIDATES", 1)
    ids = talk(bank)
    bank.search(QUESTION, model=model)
    monkeypatch.setattr(word_index, "SEARCHED_MEMORIES", 4)
    for opening in range(2):  # the second time there are shards
        with MemoryBank.open(bank.path) as again:
            index = again.recaller(model).vectors
            assert isinstance(index, WordIndex)
            first = again.search(QUESTION, model=model, limit=5)
            assert first, "it doesn't wait"
            index.worker.wait(60)
            assert again.search(QUESTION, model=model, limit=5)[0].memory.id == ids[0]
            assert index._reader.made == 0 and list(index._large) == ["default"], opening
            index._save_tail("default", index._large["default"])
    bank.forget(bank.plan_forget(ids=[ids[1]]))
    assert bank.search(QUESTION, model=model, limit=5)[0].memory.id == ids[0], "small again"
    index = bank.recaller(model).vectors
    assert isinstance(index, WordIndex) and not index._large


def test_what_is_missing_is_made_beside_the_searches(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EMBEDDER_ENV, "none")
    with MemoryBank.open(tmp_path / "bank") as bank:
        ids = talk(bank)
        bank.search(QUESTION, model=model)
    monkeypatch.delenv(EMBEDDER_ENV)
    monkeypatch.setattr(word_index, "MADE_S", 0.0)
    for large in (False, True):
        monkeypatch.setattr(word_index, "SEARCHED_MEMORIES", 4 if large else 50_000)
        with MemoryBank.open(tmp_path / "bank") as bank:
            index = bank.recaller(model).vectors
            assert isinstance(index, WordIndex)
            bank.search(QUESTION, model=model)
            index.worker.wait(60)
            assert bank.search(QUESTION, model=model, limit=5)[0].memory.id == ids[0]
            assert index._reader.made == (0 if large else 5), "kept in shards the first time"
        assert len(list((tmp_path / "bank").rglob("*.shard"))) == 1


def test_searches_after_the_first_leave_the_making_to_the_thread(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EMBEDDER_ENV, "none")
    with MemoryBank.open(tmp_path / "bank") as bank:
        ids = talk(bank)
        bank.search(QUESTION, model=model)
    monkeypatch.delenv(EMBEDDER_ENV)
    monkeypatch.setattr(word_index, "MADE_S", 0.0)
    monkeypatch.setattr(word_index, "READ_S", 0.0)  # none of the frames is read in a search's way
    with MemoryBank.open(tmp_path / "bank") as bank:
        index = bank.recaller(model).vectors
        assert isinstance(index, WordIndex)
        monkeypatch.setattr(index.worker, "wake", lambda: None)
        for _ in range(3):
            assert bank.search(QUESTION, model=model), "it doesn't wait"
        assert len(index._held["default"].waiting) == 5 and index._reader.made == 0
        assert index._piece() is True, "frames are urgent"
        assert not index._held["default"].waiting
        for _ in range(3):
            bank.search(QUESTION, model=model)
        assert index._reader.made == 0
        assert index._piece() is False and index._reader.made == 1, "somebody has just searched"
        index.worker._searched = 0.0
        monkeypatch.setattr(word_index, "_PIECE_S", 60.0)
        searched: list[bool] = []
        put = index._put

        def put_while_others_search(namespace: str, vectors: "Mapping[str, bytes]") -> bool:
            other = Thread(target=lambda: searched.append(bool(index.held_of(namespace, ids))))
            other.start()
            other.join(20)
            return put(namespace, vectors)

        monkeypatch.setattr(index, "_put", put_while_others_search)
        assert index._piece() is False and index._reader.made == 5
        assert searched == [True], "the disk is in nobody's way"
        assert index._piece() is None and not index._held["default"].unsaved
        assert bank.search(QUESTION, model=model, limit=5)[0].memory.id == ids[0]
    assert len(list((tmp_path / "bank").rglob("*.shard"))) == 1


def test_vectors_of_another_encoder_give_way(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_embedder(MINILM)
    calibration = model.calibration.model_copy(update={"embedder": MINILM.name})
    with MemoryBank.open(tmp_path / "bank") as bank:
        ids = talk(bank)
        bank.search(QUESTION, model=replace(model, calibration=calibration))
        assert vectors_kept(bank, ids) == [True] * 5
    monkeypatch.setattr(word_index, "MADE_S", 0.0)
    with MemoryBank.open(tmp_path / "bank") as bank:
        index = bank.recaller(model).vectors
        assert isinstance(index, WordIndex)
        index.complete("default")
        assert index._reader.made == 5
        found = bank.search(QUESTION, model=model, limit=5)
        assert found[0].memory.id == ids[0] and len({each.signals["vector"] for each in found}) == 5


def test_a_bank_from_before_gets_its_vectors_when_it_is_searched(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EMBEDDER_ENV, "none")
    monkeypatch.setattr(word_index, "MADE_S", 60.0)
    path = tmp_path / "bank"
    with MemoryBank.open(path) as bank:
        ids = talk(bank)
        assert "vector" not in bank.search(QUESTION, model=model)[0].signals
        assert vectors_kept(bank, ids) == [False] * 5 and not list(path.rglob("*.shard"))
    monkeypatch.delenv(EMBEDDER_ENV)
    with MemoryBank.open(path) as bank:
        assert bank.search(QUESTION, model=model, limit=5)[0].memory.id == ids[0]
        assert vectors_kept(bank, ids) == [False] * 5 and len(list(path.rglob("*.shard"))) == 1
    with MemoryBank.open(path) as bank:
        recaller = bank.recaller(model)
        assert isinstance(recaller.vectors, WordIndex)
        assert len(recaller.vectors.catch_up("default")) == 5 and recaller.vectors._reader.made == 0
        bank.forget(bank.plan_forget(ids=[ids[0]]))
        found = bank.search(QUESTION, model=model, limit=5)
        assert ids[0] not in {each.memory.id for each in found} and len(found) == 4
        assert bank.verify(deep=True).ok
    data = b"".join(file.read_bytes() for file in path.rglob("*.shard"))
    assert b"tea" not in data


def test_after_an_erase_it_ranks_as_if_there_had_never_been_one(tmp_path: Path, model: LanguageModel) -> None:
    with MemoryBank.open(tmp_path / "one") as bank, MemoryBank.open(tmp_path / "two") as never:
        ids = talk(bank)
        bank.search(QUESTION, model=model)
        bank.forget(bank.plan_forget(ids=[ids[3]]))
        never.remember_many([MemoryDraft(text, speaker=speaker) for speaker, text in TALK[:3] + TALK[4:]])
        looks = [
            [
                (each.memory.text, each.score, each.signals)
                for each in one.search(QUESTION, model=model, limit=9)
            ]
            for one in (bank, never)
        ]
    assert looks[0] == looks[1] and len(looks[0]) == 4
