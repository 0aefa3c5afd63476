"""Calibration files: the same bytes for the same calibration, a reason for every one that can't be used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.memory.random_vectors import random_vectors

from mnemos.attention.calibration import FORMAT_VERSION, Calibration, Measured, for_model, shipped
from mnemos.attention.calibration_file import (
    CALIBRATION_ENV,
    calibration_beside,
    read_calibration,
    write_calibration,
)
from mnemos.attention.config import ModelConfig
from mnemos.attention.models import load
from mnemos.attention.registry import show
from mnemos.errors import ModelError, NotFoundError, UsageError

MEASURED = Measured(
    seed=3,
    data={"talk.jsonl.gz": "a" * 64},
    held_out={},
    conversations={"training": 3, "held_out": 1},
    questions={"training": 30, "held_out": 9},
    memories={"training": 90, "held_out": 30},
    recall={"lexical": {"mean": {"1": 0.5, "mrr": 0.625}}},
    unrelated={"messages": 30, "over": 0.0333},
    reading={"4": {"none": 3.5, "text": 2.5, "plain": 2.75, "paged": 2.625, "questions": 4}},
)


@pytest.fixture
def calibration(tiny_config: ModelConfig) -> Calibration:
    changes = {
        "version": FORMAT_VERSION,
        "calibrated": True,
        "fingerprint": "ab" * 32,
        "hidden_layer": 1,
        "hidden_centre": tuple(i / 64 for i in range(64)),
        "measured": MEASURED,
    }
    return Calibration.uncalibrated(tiny_config).model_copy(update=changes)


def test_a_file_comes_back_as_it_was(tmp_path: Path, calibration: Calibration) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    write_calibration(one, calibration)
    assert read_calibration(one) == calibration
    write_calibration(two, read_calibration(one))
    assert one.read_bytes() == two.read_bytes()
    assert len(one.read_text().splitlines()) == len(Calibration.model_fields) + 2
    assert sorted(tmp_path.iterdir()) == [one, two]


def test_the_second_version_still_loads(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "old.json"
    former = calibration.model_dump(mode="json", exclude={"vectors"}) | {"version": 2}
    path.write_text(json.dumps(former))
    assert read_calibration(path).vectors is None
    assert read_calibration(path).model_copy(update={"version": FORMAT_VERSION}) == calibration


def test_vectors_come_back_and_have_to_fit(
    tmp_path: Path, calibration: Calibration, tiny_config: ModelConfig
) -> None:
    path = tmp_path / "calibration.json"
    own = calibration.model_copy(update={"vectors": random_vectors(tiny_config.hidden_size)})
    write_calibration(path, own)
    assert read_calibration(path) == own
    own.check_fits(tiny_config)
    for vectors in (
        random_vectors(tiny_config.hidden_size + 2),
        random_vectors(tiny_config.hidden_size, layer=tiny_config.layers),
    ):
        with pytest.raises(ModelError, match="another model"):
            own.model_copy(update={"vectors": vectors}).check_fits(tiny_config)


def test_the_first_version_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(
        '{"version": 1, "calibrated": true, "fingerprint": "", "key_heads": [[1, 0]], "hidden_layer": null, '
        '"hidden_centre": [], "weights": {"lexical": 0.6, "mass": 1.0}, "recall_threshold": 3.3, '
        '"reading": [{"memories": 1, "temperature": 1.0, "mass_scale": 1.0}], "notes": ""}'
    )
    found = read_calibration(path)
    assert found.version == 1 and found.measured is None and found.weights["lexical"] == 0.6


def test_what_ships_can_be_read(tmp_path: Path) -> None:
    for name, text in shipped().items():
        path = tmp_path / f"{name}.json"
        path.write_text(text, encoding="utf-8")
        assert read_calibration(path).fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cut off or damaged; make it again: `mnemos model calibrate"),
        ('{"version": 2, "calib', "cut off or damaged"),
        ("[]", "no version"),
        ('{"version": "2"}', "no version"),
        ('{"version": true}', "no version"),
        ('{"version": 99, "heads": 3}', "newer Mnemos .version 99; this one reads up to 4.; update"),
        ('{"version": 2}', "damaged .key_heads: Field required."),
        ('{"version": 2, "key_heads": [], "weights": {}, "reading": []}', "damaged .key_heads"),
        (
            '{"version": 2, "key_heads": [[0, 0]], "weights": {"mass": NaN}, "reading": []}',
            "damaged .weights.mass",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=message) as raised:
        read_calibration(path)
    assert str(path) in str(raised.value)


def test_files_that_can_not_be_read_or_written(tmp_path: Path, calibration: Calibration) -> None:
    with pytest.raises(NotFoundError, match="no calibration file"):
        read_calibration(tmp_path / "none.json")
    with pytest.raises(ModelError, match="can't be read"):
        read_calibration(tmp_path)
    whole = tmp_path / "whole.json"
    write_calibration(whole, calibration)
    cut = whole.read_bytes()
    for length in (1, len(cut) // 2, len(cut) - 3):
        whole.write_bytes(cut[:length])
        with pytest.raises(ModelError, match="cut off or damaged"):
            read_calibration(whole)
    with pytest.raises(UsageError, match="--out"):
        write_calibration(whole / "below.json", calibration)


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.json"
    path.write_text("before")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match="No space left"):
        write_calibration(path, calibration)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def model_directory(tmp_path: Path, family: Callable[[str], Any]) -> Path:
    return Path(shutil.copytree(family("qwen3").directory, tmp_path / "own"))


def own_of(directory: Path, **changes: Any) -> Calibration:
    model = load(directory, dtype="fp32", calibration="none")
    assert not model.calibration.calibrated
    own = {"calibrated": True, "fingerprint": model.fingerprint, "recall_threshold": 4.5}
    return model.calibration.model_copy(update=own | changes)


def test_a_model_takes_the_file_beside_it_unless_another_is_named(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CALIBRATION_ENV, raising=False)
    beside = calibration_beside(model_directory)
    assert beside == model_directory / "calibration.json" and not show(str(model_directory)).calibrated
    write_calibration(beside, own_of(model_directory))
    assert load(model_directory, dtype="fp32").calibration.recall_threshold == 4.5
    shown = show(str(model_directory))
    assert shown.calibrated and shown.calibration == str(beside)
    other = tmp_path / "other.json"
    write_calibration(other, own_of(model_directory, recall_threshold=5.0))
    monkeypatch.setenv(CALIBRATION_ENV, str(other))
    assert load(model_directory, dtype="fp32").calibration.recall_threshold == 5.0
    assert show(str(model_directory)).calibration == str(other)
    assert load(model_directory, dtype="fp32", calibration=beside).calibration.recall_threshold == 4.5
    monkeypatch.setenv(CALIBRATION_ENV, "none")
    assert not load(model_directory, dtype="fp32").calibration.calibrated
    assert not show(str(model_directory)).calibrated


def test_a_file_of_another_model_is_refused_by_name(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CALIBRATION_ENV, raising=False)
    beside = calibration_beside(model_directory)
    write_calibration(beside, own_of(model_directory, fingerprint="f" * 64))
    with pytest.raises(ModelError, match=r"of another model .ffffffff., not of own") as raised:
        load(model_directory, dtype="fp32")
    assert str(beside) in str(raised.value) and "mnemos model calibrate" in str(raised.value)
    write_calibration(beside, own_of(model_directory, fingerprint="", key_heads=((99, 0),)))
    with pytest.raises(ModelError, match="names head 0 of layer 99"):
        load(model_directory, dtype="fp32")


def test_a_gguf_file_has_its_calibration_beside_it(tmp_path: Path) -> None:
    weights = tmp_path / "Tiny-1B.Q4_1.gguf"
    weights.touch()
    assert calibration_beside(weights) == tmp_path / "Tiny-1B.Q4_1.calibration.json"
    assert calibration_beside(weights) != calibration_beside(tmp_path / "Tiny-1B.Q8_0.gguf")


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "mistral", "llama3", "qwen2"])
def test_models_without_one_work_with_safe_defaults(family: Callable[[str], Any], name: str) -> None:
    model = load(family(name).directory, dtype="fp32")
    own = model.calibration
    assert not own.calibrated
    own.check_fits(model.config, model.fingerprint)
    whole = set(range(model.config.layers)) - set(model.config.sliding_layers)
    assert {layer for layer, _ in own.key_heads} <= (whole or set(range(model.config.layers)))
    assert for_model(model.name, model.config, model.fingerprint) == own


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_safe_defaults_fit_any_grouping(tiny_config: ModelConfig, group: int, kv_heads: int) -> None:
    for changes in (
        {},
        {"window": 16, "sliding_layers": [0, 2, 3, 4]},
        {"window": 16, "sliding_layers": [*range(5)]},
    ):
        described = tiny_config.to_json() | {"layers": 5, "heads": group * kv_heads, "kv_heads": kv_heads}
        config = ModelConfig.from_json(described | changes)
        safe = Calibration.uncalibrated(config)
        safe.check_fits(config)
        read = {(layer, head // group) for layer, head in safe.key_heads}
        assert len(read) == len(safe.key_heads) <= 2  # each reads another KV head
