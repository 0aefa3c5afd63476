"""A short soak finds nothing, and finds what is planted."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mnemos.errors import UsageError
from mnemos.store import bench_soak, erase_memories, erasing, words
from mnemos.store.records import MemoryDraft
from mnemos.store.soak_operations import NAMESPACES, Chooser, perform
from mnemos.store.soak_truth import Space, differences, observe
from mnemos.store.store import Store


def test_nothing_is_lost_and_what_is_erased_is_gone(fast_disk: Path) -> None:
    code = "import sys; from mnemos.tui.main import main; sys.exit(main())"
    args = ["bench", "soak", "--operations", "300", "--kills", "6", "--seed", "3", "--plain", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(fast_disk)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] and found["problems"] == [] and found["bank"] is None
    assert (found["operations"], found["kills"]) == (300, 6)
    assert (
        found["erased"] > 50 and found["memories"] > 20 and found["verified"]["memories"] == found["memories"]
    )
    assert list(fast_disk.iterdir()) == []


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UsageError):
        bench_soak.run(10, 1, path=tmp_path)


def test_an_acknowledged_memory_that_is_lost_is_reported(
    fast_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = words.insert_rows
    monkeypatch.setattr(words, "insert_rows", lambda connection, rows: insert(connection, rows[:4]))
    found = bench_soak.run(60, 2, seed=1, path=fast_disk / "bank")
    assert not found["ok"] and found["problems"]
    assert found["bank"] == str(fast_disk / "bank") and (fast_disk / "bank" / "catalog.db").exists()


def test_an_erase_that_leaves_bytes_is_reported(fast_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase_memories, "zero_frames", lambda core, intent: None)
    monkeypatch.setattr(erasing, "check_erased", lambda *args, **options: ({"all": True}, ""))
    found = bench_soak.run(80, 1, seed=2, path=fast_disk / "bank", encrypted=False)
    assert not found["ok"]
    assert any("words of erased" in problem or "orphan-frame" in problem for problem in found["problems"])


@pytest.mark.parametrize("seed", range(3))
def test_the_truth_agrees_with_a_bank_that_nobody_kills(bank: Path, seed: int) -> None:
    chooser = Chooser(random.Random(seed))
    spaces = {name: Space() for name in NAMESPACES}
    with Store.open(bank) as store:
        for _ in range(40):
            operation = chooser.choose(spaces)
            result = perform(store, operation)
            for name in NAMESPACES if operation["do"] == "sweep" else [operation["namespace"]]:
                spaces[name].apply(operation, result)
        for name in NAMESPACES:
            assert differences(spaces[name], observe(store, name)) == []


def test_each_kind_of_difference_is_told(bank: Path) -> None:
    with Store.open(bank) as store:
        store.add("ada", [MemoryDraft("one", tags=["x"]), MemoryDraft("two")])
        seen = observe(store, "ada")
        assert differences(seen, observe(store, "ada")) == []
        for change in ("pinned", "reply", "tags", "trace", "uses", "id"):
            other = seen.copy()
            setattr(other.held["one"], change, ("y",) if change in ("tags", "uses") else "y")
            assert len(differences(other, seen)) == 1, change
        other = seen.copy()
        other.held["one"] = other.held.pop("one")
        assert differences(other, seen) == ["the order of the memories has changed"]
        other = seen.copy()
        del other.held["one"]
        assert "ought not to be" in differences(other, seen)[0]
        other = seen.copy()
        other.sessions["s"] = "a title"
        assert differences(other, seen) == ["the sessions are not what was written"]
