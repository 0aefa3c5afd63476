"""Remember, list, show, search, mark: their JSON forms, columns and exit codes."""

import json
from pathlib import Path

import pytest
from tests.tui.conftest import Command

TEXTS = (
    "My sister Clara works as a nurse in Lisbon.",
    "I keep four hives of bees behind the shed.",
    "The red bicycle belongs to Tomas.",
)


@pytest.fixture(scope="module")
def ids(shared: Command) -> list[str]:
    return shared.remember(*TEXTS)


def test_remember_prints_an_id(mnemos: Command) -> None:
    ran = mnemos("remember", TEXTS[0])
    assert (ran.code, len(ran.out.strip())) == (0, 26)
    assert "made a new bank" in ran.err and "back up its key" in ran.err
    again = mnemos("remember", "--json", TEXTS[1])
    assert set(again.json) == {"id"}
    assert again.err == ""


def test_remember_reads_standard_input(mnemos: Command) -> None:
    made = mnemos(
        "remember", "-", "--json", "--title", "Verse", "--tag", "poem", "--tag", "sea", stdin="One.\nTwo.\n"
    )
    memory = mnemos("memory", "show", made.json["id"], "--json").json["memory"]
    assert memory["text"] == "One.\nTwo."
    assert (memory["title"], sorted(memory["tags"]), memory["kind"]) == ("Verse", ["poem", "sea"], "note")
    assert (memory["fidelity"], memory["tokens"], memory["status"]) == ("pending", 0, "complete")


def test_a_text_may_start_with_a_dash(mnemos: Command) -> None:
    assert mnemos("remember", "--", "-5 degrees at noon").code == 0


def test_list_in_json_is_newest_first_and_whole(shared: Command, ids: list[str]) -> None:
    found = shared("memory", "list", "--json").json["memories"]
    assert [memory["id"] for memory in found] == ids[::-1]
    assert [memory["text"] for memory in found] == list(TEXTS[::-1])
    oldest = shared("memory", "list", "--oldest", "--limit", "1", "--json").json["memories"]
    assert [memory["id"] for memory in oldest] == ids[:1]


def test_list_in_a_pipe_is_columns_of_whole_ids(shared: Command, ids: list[str]) -> None:
    rows = [line.split("\t") for line in shared("memory", "list").out.splitlines()]
    assert [row[0] for row in rows] == ids[::-1]
    assert {len(row) for row in rows} == {9}
    assert rows[-1][-1] == TEXTS[0]


def test_list_filters(shared: Command, ids: list[str]) -> None:
    def listed(*args: str) -> list[str]:
        return [memory["id"] for memory in shared("memory", "list", "--json", *args).json["memories"]]

    assert listed("--match", "HIVES") == [ids[1]]
    assert listed("--since", "1h") == ids[::-1]
    assert listed("--since", "2099-01-01") == []
    assert listed("--until", "2001-01-01") == []
    assert listed("--tag", "none") == []


def test_show_takes_a_prefix(shared: Command, ids: list[str]) -> None:
    assert shared("memory", "show", ids[0][:8], "--json").json["memory"]["id"] == ids[0]
    assert TEXTS[0] in shared("memory", "show", ids[0]).out


@pytest.mark.parametrize(("wanted", "code"), [("zzzzzzzz", 1), ("ab", 2), ("", 2)])
def test_an_id_that_leads_nowhere(shared: Command, ids: list[str], wanted: str, code: int) -> None:
    ran = shared("memory", "show", wanted)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1


def test_search_explains_each_signal(shared: Command, ids: list[str]) -> None:
    asked = ("memory", "search", "bees", "--router", "lexical")
    (plain,) = (line.split("\t") for line in shared(*asked).out.splitlines())
    (explained,) = (line.split("\t") for line in shared(*asked, "--explain").out.splitlines())
    assert explained[:3] == plain[:3] and explained[4:] == plain[3:]
    assert explained[3] == explained[1]  # words alone: the score is that signal


def test_lexical_search_needs_no_model(shared: Command, ids: list[str]) -> None:
    missing = "/nonexistent/model.gguf"
    ran = shared(
        "memory", "search", "bees", "--router", "lexical", "--json", "--limit", "2", MNEMOS_MODEL=missing
    )
    assert ran.code == 0
    best = ran.json["results"][0]
    assert (best["id"], best["text"], best["rank"]) == (ids[1], TEXTS[1], 1)
    assert best["score"] == best["signals"]["lexical"]


def test_search_that_finds_nothing_is_no_error(shared: Command, ids: list[str]) -> None:
    ran = shared("memory", "search", "xylophone", "--router", "lexical", "--json")
    assert (ran.code, ran.json) == (0, {"results": []})


def test_hide_keeps_a_memory_out_and_unhide_brings_it_back(mnemos: Command) -> None:
    (memory,) = mnemos.remember(TEXTS[1])
    assert mnemos("memory", "hide", memory[:6], "--json").json["memory"]["hidden"] is True
    assert mnemos("memory", "list", "--json").json["memories"] == []
    assert mnemos("memory", "search", "bees", "--router", "lexical", "--json").json["results"] == []
    hidden = mnemos("memory", "list", "--hidden", "--json").json["memories"]
    assert [each["id"] for each in hidden] == [memory]
    assert mnemos("memory", "unhide", memory).out.strip() == memory
    assert len(mnemos("memory", "search", "bees", "--router", "lexical", "--json").json["results"]) == 1


def test_pin_and_unpin(mnemos: Command) -> None:
    (memory,) = mnemos.remember(TEXTS[0])
    assert mnemos("memory", "pin", memory, "--json").json["memory"]["pinned"] is True
    assert "pinned" in mnemos("memory", "list").out
    assert mnemos("memory", "unpin", memory, "--json").json["memory"]["pinned"] is False


def test_stats_and_info_count_alike(shared: Command, ids: list[str]) -> None:
    stats = shared("memory", "stats", "--json").json
    assert (stats["memories"], stats["pending"], stats["text_bytes"]) == (3, 3, sum(map(len, TEXTS)))
    info = shared("bank", "info", "--json").json
    assert info["stats"]["memories"] == 3
    assert (info["path"], info["encrypted"], info["namespaces"]) == (str(shared.bank), True, ["default"])
    assert Path(info["key"]).is_file() and shared.bank not in Path(info["key"]).parents


def test_verify_of_a_sound_bank(shared: Command, ids: list[str]) -> None:
    ran = shared("bank", "verify", "--deep", "--json")
    assert (ran.code, ran.json["ok"], ran.json["problems"]) == (0, True, [])
    assert sum(ran.json["checked"].values()) > 0


def test_verify_of_a_damaged_bank(mnemos: Command) -> None:
    mnemos.remember(*TEXTS)
    (segment,) = (mnemos.bank / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    ran = mnemos("bank", "verify", "--deep", "--json")
    assert (ran.code, ran.json["ok"]) == (4, False)
    assert {"kind", "subject", "detail"} == set(ran.json["problems"][0])
    assert not any(text in ran.out + ran.err for text in TEXTS)
    assert mnemos("bank", "verify", "--deep").code == 4


def test_compact_gives_space_back(mnemos: Command) -> None:
    first, _, _ = mnemos.remember(*TEXTS)
    assert mnemos("memory", "forget", "--id", first, "--yes").code == 0
    ran = mnemos("bank", "compact", "--min-dead", "0.01", "--json")
    assert (ran.code, ran.json["segments_removed"], ran.json["frames_moved"]) == (0, 1, 2)
    assert ran.json["is_finished"] and ran.json["frames_left"] == 0
    assert mnemos("bank", "compact").code == 0 and mnemos("bank", "compact", "--min-dead", "2").code == 2
    assert mnemos("bank", "verify", "--deep", "--json").json["ok"]


def test_namespaces_do_not_see_each_other(mnemos: Command) -> None:
    mnemos.remember(TEXTS[0], namespace="alice")
    mnemos.remember(TEXTS[1], namespace="acme/bob")
    for namespace, text in (("alice", TEXTS[0]), ("acme/bob", TEXTS[1])):
        found = mnemos("memory", "list", "--json", MNEMOS_NAMESPACE=namespace).json["memories"]
        assert [memory["text"] for memory in found] == [text]
    assert mnemos(
        "memory", "search", "bees", "--router", "lexical", "--namespace", "alice", "--json"
    ).json == {"results": []}


def test_ingest_adds_what_is_new_alone(mnemos: Command, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("# Page\n\n## One\n\nThe first part.\n\n## Two\n\nThe second part.\n")
    (page.parent / "picture.png").write_bytes(b"\x89PNG\0")
    first = mnemos("ingest", str(page.parent), "--json").json
    assert (first["added"], first["skipped"], first["files"]) == (2, 0, 1)
    assert [problem["path"] for problem in first["problems"]] == [str(page.parent / "picture.png")]
    page.write_text(page.read_text().replace("second", "changed second"))
    second = mnemos("ingest", str(page), "--json").json
    assert (second["added"], second["skipped"], second["problems"]) == (1, 1, [])
    listed = mnemos("memory", "list", "--source", str(page), "--json").json["memories"]
    assert sorted(memory["title"] for memory in listed) == ["Page > One", "Page > Two", "Page > Two"]
    assert {memory["kind"] for memory in listed} == {"document"}


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_bytes(b"caf\xe9")])
def test_ingest_of_what_cannot_be_read(mnemos: Command, tmp_path: Path, make: object) -> None:
    path = tmp_path / "odd.txt"
    make(path)  # type: ignore[operator]
    ran = mnemos("ingest", str(path), "--json")
    assert ran.code in (1, 2)
    assert set(ran.json["error"]) == {"type", "message"}


def test_model_list_and_show(mnemos: Command) -> None:
    models = mnemos("model", "list", "--json").json["models"]
    (default,) = [model for model in models if model["is_default"]]
    assert mnemos("model", "show", "--json").json == {"model": default}
    assert default["license"] == "Apache-2.0" and default["name"] in mnemos("model", "list").out


def test_documents_are_one_line_in_a_pipe(shared: Command, ids: list[str]) -> None:
    out = shared("memory", "list", "--json").out
    assert out.count("\n") == 1
    assert isinstance(json.loads(out), dict)
