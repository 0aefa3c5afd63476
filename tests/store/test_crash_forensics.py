"""No word of what was erased is left by a process that dies in the middle of it: not in the bank once it is
opened again, not in temporary files, not in what the process says as it dies.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.store.test_forensics import CANARIES, contents, holding, plant

from mnemos.store.erasing import STEPS
from mnemos.store.store import Store

ERASER = """
import faulthandler, os, resource, signal, sys
from mnemos.store.records import Selector
from mnemos.store.store import Store
faulthandler.enable()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
bank, session, step, how = sys.argv[1:]
def on_step(reached):
    if reached != step:
        return
    if how == "raise":
        raise RuntimeError("in the middle of it")
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSEGV)
with Store.open(bank) as store:
    everything = session == "everything"
    selector = Selector("alice", everything=True) if everything else Selector("alice", session_id=session)
    store.erase(store.plan_erase(selector), on_step=on_step)
"""


def _die(
    bank: Path, session_id: str, step: str, how: str, scratch: Path
) -> "subprocess.CompletedProcess[bytes]":
    scratch.mkdir()
    return subprocess.run(
        [sys.executable, "-c", ERASER, str(bank), session_id, step, how],
        capture_output=True,
        cwd=scratch,
        env={**os.environ, "TMPDIR": str(scratch), "SQLITE_TMPDIR": str(scratch)},
        timeout=100,
    )


def left(folder: Path) -> list[str]:
    """Names of the canaries that some file of a folder holds."""
    everything = b"\0".join(contents(folder).values())
    forms = {name: (word.encode(), word.encode("utf-16-le")) for name, word in CANARIES.items()}
    return [name for name, words in forms.items() if any(word in everything for word in words)]


@pytest.fixture
def planted(fast_disk: Path) -> tuple[Path, str, str]:
    """A bank without encryption, the session to erase, and the id of the memory in it."""
    bank = fast_disk / "bank"
    with Store.open(bank, encrypted=False) as store:
        session_id = plant(store, "alice")
        (memory,) = store.list("alice", session_id=session_id)
    return bank, session_id, memory.id


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_each_step_and_opened_again(planted: tuple[Path, str, str], step: str) -> None:
    bank, session_id, memory_id = planted
    scratch = bank.with_name("scratch")
    done = _die(bank, session_id, step, "kill", scratch)
    assert done.returncode == -9 and list(scratch.iterdir()) == []
    with Store.open(bank) as store:
        (receipt,) = store.receipts()
        assert receipt["erased"] == [memory_id] and all(receipt["checks"].values())
        assert left(bank) == []
        for name, word in CANARIES.items():
            assert store.lexical("alice", word, 5) == [], name
            assert word.encode() not in done.stdout + done.stderr
        assert {name for name in holding(bank, memory_id) if not name.startswith("catalog.db")} == set()
        assert store.verify(deep=True).ok
    assert left(bank) == []


@pytest.mark.parametrize("whole", [False, True], ids=["session", "namespace"])
@pytest.mark.parametrize("how", ["raise", "fault"])
def test_what_a_process_says_as_it_dies_holds_no_word(
    planted: tuple[Path, str, str], how: str, whole: bool
) -> None:
    bank, session_id, _ = planted
    scratch = bank.with_name("scratch")
    done = _die(bank, "everything" if whole else session_id, "keys", how, scratch)
    said = done.stdout + done.stderr
    assert done.returncode == (1 if how == "raise" else -11) and b"on_step" in said
    for word in (*CANARIES.values(), "bystander"):
        assert word.encode() not in said
    assert left(scratch) == []
    with Store.open(bank) as store:
        assert len(store.receipts()) == 1 and store.verify(deep=True).ok
    assert left(bank) == []


def test_through_the_command(fast_disk: Path) -> None:
    """Words in text, tag, file name and session title, told and forgotten as people do it, in processes of
    their own.
    """
    scratch, bank = fast_disk / "scratch", fast_disk / "bank"
    scratch.mkdir()
    Store.open(bank, encrypted=False).close()
    page = fast_disk / f"{CANARIES['source']}.md"
    page.write_text(f"about {CANARIES['text']} of the page")
    code = "import sys; from mnemos.tui.main import main; sys.exit(main())"

    def mnemos(*args: str, stdin: str = "") -> bytes:
        done = subprocess.run(
            [sys.executable, "-c", code, *args, "--bank", str(bank)],
            input=stdin.encode(),
            capture_output=True,
            cwd=scratch,
            env={**os.environ, "TMPDIR": str(scratch), "HOME": str(scratch), "SQLITE_TMPDIR": str(scratch)},
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    mnemos("remember", "-", "--tag", CANARIES["tag"], stdin=f"it is {CANARIES['text']}")
    mnemos("remember", "a bystander")
    mnemos("ingest", str(page))
    assert holding(bank, CANARIES["text"]) and holding(bank, CANARIES["source"])
    said = mnemos("memory", "forget", "--match", "-", "--yes", "--json", stdin=CANARIES["text"])
    page.unlink()
    for name in ("text", "tag", "source"):
        assert CANARIES[name].encode() not in said, name
        assert holding(fast_disk, CANARIES[name]) == [], name
    assert holding(bank, "bystander")
    shutil.rmtree(scratch)
