"""The documents say what the commands do, and nothing else."""

import re
import shlex
import typing
from pathlib import Path

import pytest
import typer

from mnemos.agent.events import Usage
from mnemos.attention.registry import ModelInfo
from mnemos.memory.records import BankStats, Memory, RecalledMemory
from mnemos.tui.app.slash import HELP
from mnemos.tui.chat_commands import COMMANDS
from mnemos.tui.main import app

ROOT = Path(__file__).resolve().parents[2]
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHARED = {"--bank", "--namespace", "--json", "--model", "--help", "-h"}


def commands() -> dict[str, set[str]]:
    """Every command's full name and its options."""
    found: dict[str, set[str]] = {}

    def walk(command: typing.Any, name: str) -> None:
        for child_name, child in getattr(command, "commands", {}).items():
            walk(child, f"{name} {child_name}")
        if not hasattr(command, "commands"):
            options = [param for param in command.params if param.param_type_name == "option"]
            found[name] = {flag for option in options for flag in (*option.opts, *option.secondary_opts)} - {
                "--install-completion"
            }

    walk(typer.main.get_command(app), "mnemos")
    return found


COMMAND_TREE = commands()


def section(command: str) -> str:
    """A command's own section of docs/cli.md."""
    match = re.search(rf"^### `{re.escape(command)}(?: [^`]*)?`\n(.*?)(?=^##|\Z)", CLI, re.M | re.S)
    assert match, f"docs/cli.md has no section for `{command}`"
    return match[1]


@pytest.mark.parametrize("command", COMMAND_TREE)
def test_every_command_and_option_is_documented(command: str) -> None:
    words = section(command)
    for option in COMMAND_TREE[command] - SHARED:
        assert option in words, f"{command} {option}"


@pytest.mark.parametrize("command", COMMAND_TREE)
def test_every_command_takes_the_shared_options(command: str) -> None:
    assert {"--bank", "--namespace", "--json"} <= COMMAND_TREE[command]


def test_no_command_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^### `(mnemos[a-z ]*?)(?: [\[A-Z][^`]*)?`$", CLI, re.M)
    assert sorted(documented) == sorted(COMMAND_TREE)


def test_no_option_is_documented_that_does_not_exist() -> None:
    for command, options in COMMAND_TREE.items():
        for option in re.findall(r"(?<![\w/-])--[a-z][a-z-]*", section(command)):
            known = options | SHARED
            assert option in known or command == "mnemos chat", f"{command} {option}"


@pytest.mark.parametrize("model", [Memory, RecalledMemory, BankStats, Usage])
def test_every_json_field_is_documented(model: typing.Any) -> None:
    for field in set(model.model_fields) - {"memory", "type"}:
        assert f"`{field}`" in CLI, f"{model.__name__}.{field}"


def test_every_field_of_a_model_is_documented() -> None:
    words = section("mnemos model show")
    assert all(f"`{field}`" in words for field in ModelInfo.__dataclass_fields__)


def test_every_chat_command_is_documented() -> None:
    words = section("mnemos chat")
    assert all(f"/{name}" in words for name in {*COMMANDS, *HELP})


def test_the_readme_names_commands_that_exist() -> None:
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", README, re.S)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    used = [shlex.split(line, comments=True) for line in lines if line.startswith("mnemos ")]
    assert used
    for words in used:
        names = [" ".join(words[:count]) for count in (4, 3, 2)]
        name = next((name for name in names if name in COMMAND_TREE), None)
        assert name is not None, names
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= COMMAND_TREE[name] | SHARED


def test_the_readme_names_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = set(re.findall(r"`?make ([a-z-]+)`?", README))
    assert {"demo", "test"} <= named <= targets


def test_the_readme_sample_is_python_of_fifteen_lines_at_most() -> None:
    (sample,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert sum(1 for line in sample.splitlines() if line.strip()) <= 15
    compile(sample, "README.md", "exec")


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/cli.md",
        "docs/formats/archive.md",
        "docs/formats/importers.md",
        "examples/README.md",
    ],
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_architecture_fits_on_a_few_pages() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) < 200
