"""`mnemos memory export` and `import`, as people and scripts run them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "export.mnemos"


def test_out_and_in_again(mnemos: Any, archive: Path) -> None:
    mnemos.remember("The boat is green.", "The car is red.")
    mnemos.remember("Elsewhere.", namespace="acme/bob")
    ran = mnemos("memory", "export", str(archive))
    assert ran.code == 0 and ran.out.startswith("exported 2 memories of 1 namespaces")
    assert "warning: the archive is not encrypted" in ran.err
    assert mnemos("memory", "forget", "--all", "--yes", "--confirm", "default").code == 0
    ran = mnemos("memory", "import", str(archive))
    assert (ran.code, ran.out) == (0, "0 memories added, 0 known already (archive)\n")
    assert "2 were forgotten here before" in ran.err
    ran = mnemos("memory", "import", str(archive), "--restore-erased", "--json")
    assert ran.json["added"] == 2 and ran.json["format"] == "archive"
    assert (
        mnemos("memory", "import", str(archive), "--into", "copy", "--restore-erased", "--json").json["added"]
        == 2
    )
    assert len(mnemos("memory", "list", "--namespace", "copy", "--json").json["memories"]) == 2


def test_through_a_pipe_encrypted(mnemos: Any, archive: Path) -> None:
    mnemos.remember("The boat is green.")
    mnemos.remember("Elsewhere.", namespace="acme/bob")
    secret = {"MNEMOS_ARCHIVE_PASSPHRASE": "correct horse"}
    out = mnemos("memory", "export", str(archive), "--encrypt", "--all-namespaces", "--json", **secret)
    assert out.json["encrypted"] is True and out.json["memories"] == 2 and "warning" not in out.err
    assert b"boat" not in archive.read_bytes()
    other = {"MNEMOS_BANK": str(archive.with_name("second"))}
    ran = mnemos("memory", "import", "-", "--json", stdin=archive.read_bytes(), **secret, **other)
    assert ran.json["added"] == 2
    ran = mnemos("memory", "import", "-", stdin=archive.read_bytes(), **other)
    assert ran.code == 2 and "MNEMOS_ARCHIVE_PASSPHRASE" in ran.err
    ran = mnemos("memory", "import", str(archive), MNEMOS_ARCHIVE_PASSPHRASE="wrong", **other)
    assert ran.code == 1 and "passphrase" in ran.err and "nothing was imported" in ran.err


def test_standard_output_carries_the_archive_alone(mnemos: Any, archive: Path) -> None:
    mnemos.remember("The boat is green.")
    script = Path(sys.executable).with_name("mnemos")
    done = subprocess.run(
        [script, "memory", "export", "-", "--json"], capture_output=True, env=mnemos.environment, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith(b"\x28\xb5\x2f\xfd")
    assert b'"memories":1' in done.stderr and b"not encrypted" in done.stderr
    assert mnemos("memory", "import", "-", "--json", stdin=done.stdout).json["known"] == 1


def test_bad_requests(mnemos: Any, archive: Path) -> None:
    mnemos.remember("The boat is green.")
    ran = mnemos("memory", "export", str(archive), "--match", "no such words")
    assert ran.code == 1 and "nothing was written" in ran.err and not archive.exists()
    assert mnemos("memory", "export", str(archive), "--namespace", "nobody").code == 1
    assert mnemos("memory", "export", str(archive), "--namespace", "../x").code == 2
    assert mnemos("memory", "export", str(archive), "--session", "abcdef").code == 1
    assert mnemos("memory", "export", str(archive), "--encrypt").code == 2
    archive.write_text("precious")
    assert mnemos("memory", "export", str(archive)).code == 2 and archive.read_text() == "precious"
    assert mnemos("memory", "import", str(archive.with_name("missing"))).code == 1
    assert mnemos("memory", "import", str(archive), "--into", "a//b").code == 2
    ran = mnemos("memory", "import", str(archive), "--json")
    assert ran.code == 1 and ran.json["error"]["type"] == "ArchiveError"


def test_several_namespaces_and_filters(mnemos: Any, archive: Path) -> None:
    mnemos.remember("The boat is green.")
    mnemos.remember("My boat too.", "Elsewhere.", namespace="acme/bob")
    ran = mnemos(
        "memory",
        "export",
        str(archive),
        "--namespace",
        "default",
        "--namespace",
        "acme/bob",
        "--match",
        "BOAT",
        "--json",
    )
    assert (ran.json["namespaces"], ran.json["memories"]) == (2, 2)
    ran = mnemos("memory", "export", str(archive), "--overwrite", "--json", MNEMOS_NAMESPACE="acme/bob")
    assert (ran.json["namespaces"], ran.json["memories"]) == (1, 2)


def test_conversations_of_another_program(mnemos: Any, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}, {"role": 5}, []]
    log.write_text("\n".join(json.dumps(line) for line in lines))
    ran = mnemos("memory", "import", str(log), "--namespace", "chats")
    assert (ran.code, ran.out) == (0, "1 memories added, 0 known already (jsonl)\n")
    assert "left out: record 3:" in ran.err and "left out: record 4:" in ran.err
    found = mnemos("memory", "list", "--namespace", "chats", "--source", str(log), "--json").json["memories"]
    assert [(memory["text"], memory["reply"]) for memory in found] == [("Hello.", "Hi.")]
    assert mnemos("memory", "import", str(log), "--namespace", "chats", "--json").json["known"] == 1


def test_a_passphrase_is_asked_for_twice_and_not_shown(
    mnemos: Any, open_terminal: Callable[..., Any], archive: Path
) -> None:
    mnemos.remember("The boat is green.")
    terminal = open_terminal(mnemos, "memory", "export", str(archive), "--encrypt")
    terminal.wait_for("Passphrase for the archive: ")
    terminal.type("hush hush\n")
    terminal.wait_for("The same again: ")
    terminal.type("hush hush\n")
    assert terminal.end() == 0
    assert "hush" not in terminal.seen and archive.read_bytes().startswith(b"MNARCHIV")
    ran = mnemos("memory", "import", str(archive), "--json", MNEMOS_ARCHIVE_PASSPHRASE="hush hush")
    assert ran.json["known"] == 1
