"""The examples run as they are, and what they say they show is so."""

import json
import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient

from mnemos import MemoryBank
from mnemos.store.receipts import verify_receipt

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def ran(
    name: str, *arguments: str | Path, tmp_path: Path, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """An example in a process of its own, with its keys and whatever it makes for itself below `tmp_path`."""
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        encoding="utf-8",
        env=env if path is None else {**env, "PATH": path},
    )


def shown(name: str, *arguments: str | Path, tmp_path: Path) -> str:
    done = ran(name, *arguments, tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(name: str) -> ModuleType:
    spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_of(out: str) -> list[str]:
    """The best memory of each question."""
    return re.findall(r"^  1\. (.*)$", out, re.M)


@pytest.mark.model
@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    out = shown("quickstart.py", tmp_path / "bank", tmp_path=tmp_path)
    assert re.search(r"^made with: My sister Clara works as a nurse in Leeds\. \(score", out, re.M)
    assert "forgetting 2 memories" in out and "'frames_zeroed': True" in out
    assert out.endswith("left: 0\n")


@pytest.mark.model
@pytest.mark.slow
def test_the_tutor_goes_on_where_it_was(tmp_path: Path) -> None:
    out = shown("personal_tutor.py", tmp_path / "bank", tmp_path=tmp_path)
    first, second = out.split("Lesson 2\n")
    assert "la mapa: wrong, it is el mapa" in first and "recalled" not in first
    assert "recalled: My mistake with the map in Spanish: I said la mapa, but it is el mapa." in second
    out = shown("personal_tutor.py", tmp_path / "bank", tmp_path=tmp_path)
    assert out.startswith("Lesson 3\n") and "recalled: My mistake with the hand in Spanish" in out
    assert "the map" not in out  # mastered, and its mistake erased
    with MemoryBank.open(tmp_path / "bank") as bank:
        assert [memory.title for memory in bank.list("pupil", tags=["mistake"])] == ["the day", "the photo"]
        assert len(bank.sessions("pupil")) == 4


@pytest.mark.model
@pytest.mark.slow
def test_the_companion_names_file_and_commit(tmp_path: Path) -> None:
    out = shown("codebase_companion.py", tmp_path / "bank", tmp_path=tmp_path)
    rounding, fee = first_of(out)
    found = re.fullmatch(r"commit ([0-9a-f]{10}) by Ines, 2024-03-02, (.*)@([0-9a-f]{40,})", rounding)
    assert found and found[3].startswith(found[1])
    message = subprocess.run(
        ["git", "-C", found[2], "show", "-s", "--format=%B", found[3]], capture_output=True, text=True
    )
    assert "bankers' rounding" in message.stdout
    assert fee.startswith("def late_fee(invoice, days), ") and fee.endswith(f"{found[2]}/late_fee.py")


def test_the_companion_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2024-03-01T10:00:00+00:00")
    companion = loaded("codebase_companion")
    repository = companion.make_repository()
    (repository / "logo.png").write_bytes(b"\x89PNG\0")
    companion.git(repository, "add", "logo.png")
    with MemoryBank.open(tmp_path / "bank") as bank:
        assert companion.read_files(bank, repository) > 0
        assert companion.read_history(bank, repository) == 4
        held = bank.count("code")
        assert companion.read_files(bank, repository) == 0
        companion.read_history(bank, repository)
        assert bank.count("code") == held
        commits = bank.list("code", where="tag:commit and tag:billing.py", newest_first=False)
        assert [commit.created_at.day for commit in commits] == [1, 2]
        assert "auditors of Marsh & Lowe" in commits[1].text and "billing.py" in commits[1].text


def test_the_companion_says_when_there_is_no_git_and_no_repository(tmp_path: Path) -> None:
    done = ran("codebase_companion.py", tmp_path / "bank", tmp_path=tmp_path, path="")
    assert done.returncode == 1 and "git is not on the PATH" in done.stderr
    done = ran("codebase_companion.py", tmp_path / "bank", tmp_path, tmp_path=tmp_path)
    assert done.returncode == 1 and "git rev-parse failed" in done.stderr
    assert not (tmp_path / "bank").exists()


@pytest.mark.model
@pytest.mark.slow
def test_the_support_desk_keeps_customers_apart_and_erases_one(tmp_path: Path) -> None:
    out = shown("support_desk.py", tmp_path / "bank", tmp_path=tmp_path)
    told = {"amara": "Corvid 300", "bruno": "Heron 12", "celia": "Magpie X"}
    for customer, printer in told.items():
        recalled = re.findall(rf"^  from desk/{customer}: (.*)$", out, re.M)
        assert any(printer in text for text in recalled)
        assert not any(other in text for other in set(told.values()) - {printer} for text in recalled)
    before = re.search(r"^found before: (.*)$", out, re.M)
    assert before and set(before[1].split(", ")) == {
        "desk/amara",
        "lexical search",
        "full search",
        "latent search",
    }
    assert "left of desk/amara: 0 memories; found: []" in out
    assert "untouched: {'desk/bruno': 2, 'desk/celia': 2}; the bank verifies: True" in out
    assert out.rstrip().endswith("valid False") and ": valid True\n" in out
    receipt = json.loads((tmp_path / "bank-receipt.json").read_text())
    assert verify_receipt(receipt) and len(receipt["erased"]) == 3
    assert "Corvid" not in json.dumps(receipt)


@pytest.mark.model
@pytest.mark.slow
def test_the_reader_reads_once(tmp_path: Path) -> None:
    out = shown("long_reader.py", tmp_path / "bank", tmp_path=tmp_path)
    best = re.findall(r"first token after (\d+) ms with (\d+) tokens paged in; (\d+) ms when", out)
    assert len(best) == 3 and all(int(tokens) > 50 for _, tokens, _ in best)
    days = out.split("\nday ")[1:]
    assert all("Chapter VII: A Mad Tea-Party" in day for day in days)
    assert "The March Hare took the watch" in days[0] and "He won't stand beating" in days[1]
    with MemoryBank.open(tmp_path / "bank") as bank:
        passages = bank.list("reader")
        assert all(passage.source == str(EXAMPLES / "data" / "alice.md") for passage in passages)
        assert all(passage.fidelity == "vivid" for passage in passages)
    again = shown(
        "long_reader.py", tmp_path / "bank", EXAMPLES / "data" / "alice.md", "Who slept?", tmp_path=tmp_path
    )
    assert again.startswith("alice.md: 0 passages read") and "; 0 encoded" in again
    assert f"{len(passages)} known already" in again


@pytest.mark.model
@pytest.mark.slow
def test_legacy_code_is_answered_by_paragraph_and_subroutine(tmp_path: Path) -> None:
    out = shown("legacy_code.py", tmp_path / "bank", tmp_path=tmp_path)
    legacy = EXAMPLES / "data" / "legacy"
    assert first_of(out) == [
        f"payroll.cob, paragraph COMPUTE-OVERTIME ({legacy / 'payroll.cob'}:41)",
        f"ledger.cob, paragraph POST-ENTRY ({legacy / 'ledger.cob'}:29)",
        f"tides.f, subroutine WARN ({legacy / 'tides.f'}:23)",
    ]


def test_sources_are_cut_at_paragraphs_and_units_and_nothing_is_lost() -> None:
    example = loaded("legacy_code")
    for name, expected in {
        "ledger.cob": ["declarations", "MAIN-LINE", "WIDEN-YEAR", "POST-ENTRY", "CHECK-BALANCE"],
        "tides.f": ["TIDES", "TIDEHT", "WARN", "KNOTS"],
    }.items():
        file = EXAMPLES / "data" / "legacy" / name
        parts = list(example.units(file))
        assert [title.split()[-1] for title, _, _ in parts] == expected
        lines = file.read_text().splitlines()
        assert all(lines[first - 1] == text.split("\n")[0] for _, first, text in parts)
        assert [line for _, _, text in parts for line in text.split("\n") if line] == [
            line for line in lines if line
        ]


@pytest.mark.model
@pytest.mark.slow
def test_the_application_streams_and_keeps_users_apart(tmp_path: Path) -> None:
    out = shown("embed_in_fastapi.py", tmp_path / "bank", tmp_path=tmp_path)
    ann, ben = out.split("ben asks for the locker code\n")
    assert "recalled: ['My locker code is 4417.'" in ann
    assert ben.startswith("  recalled: []\n") and "4417" not in ben
    assert "ben deletes ann's memory: 404\nann deletes it: 200 receipt " in ben
    assert ben.endswith("without a token: 401\n")


def test_the_application_answers_each_token_with_its_own_namespace(tmp_path: Path) -> None:
    app = loaded("embed_in_fastapi").create_app(str(tmp_path / "bank"), {"t-ann": "ann", "t-ben": "ben"})
    ann, ben = ({"Authorization": f"Bearer {token}"} for token in ("t-ann", "t-ben"))
    with TestClient(app) as client:
        bank = app.state.bank
        kept = bank.remember("The key is under the mat.", namespace="users/ann")
        assert [each["text"] for each in client.get("/memories", headers=ann).json()] == [kept.text]
        assert client.get("/memories", headers=ben).json() == []
        for stranger in ({}, {"Authorization": "Bearer t-an"}, {"Authorization": "Bearer t-änn".encode()}):
            assert client.get("/memories", headers=stranger).status_code == 401
            assert client.post("/chat", json={"text": "hi"}, headers=stranger).status_code == 401
        assert client.post("/chat", json={"text": ""}, headers=ann).status_code == 422
        refused = client.delete(f"/memories/{kept.id}", headers=ben)
        assert refused.status_code == 404 and "mat" not in refused.text
        receipt = client.delete(f"/memories/{kept.id}", headers=ann).json()
        assert receipt["erased"] == [kept.id] and verify_receipt(receipt, bank.public_key)
        assert bank.list("users/ann") == []


def test_the_application_says_what_it_needs(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['fastapi'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    example = EXAMPLES / "embed_in_fastapi.py"
    done = subprocess.run([sys.executable, "-c", code, example], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install --group examples" in done.stderr


def test_every_example_is_in_the_table() -> None:
    table = set(re.findall(r"^\| \[(\w+\.py)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.M))
    assert table == {file.name for file in EXAMPLES.glob("*.py")} - {"screenshots.py"}


def test_fixtures_are_small() -> None:
    assert sum(file.stat().st_size for file in (EXAMPLES / "data").rglob("*") if file.is_file()) < 100_000
