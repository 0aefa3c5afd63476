"""The wheel holds the tree's files, all of them and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("agent", "attention", "memory", "store", "tui")
OWN_FILES = ("__init__.py", "errors.py", "py.typed")
UNSHIPPED = {"__pycache__", ".mypy_cache", ".ruff_cache", ".DS_Store"}


def tree() -> set[str]:
    """The paths inside the wheel that the tree's files should have."""
    files = {f"mnemos/{name}" for name in OWN_FILES}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and not UNSHIPPED & set(path.parts) and path.suffix != ".pyc":
                files.add(f"mnemos/{path.relative_to(ROOT).as_posix()}")
    return files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built the way `python -m build` builds it: through the sdist, from a copy of the tree."""
    copy = tmp_path_factory.mktemp("copy") / "mnemos"
    unneeded = shutil.ignore_patterns(
        ".venv", ".git", "build", "dist", ".*_cache", ".hypothesis", "__pycache__"
    )
    shutil.copytree(ROOT, copy, symlinks=True, ignore=unneeded)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_the_rooms_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert len(names) == len(set(names))
    assert set(names) == tree()


def test_the_wheel_holds_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "mnemos/py.typed" in names
    assert "mnemos/agent/demo_data/handbook.md" in names
    assert any(name.startswith("mnemos/attention/calibrations/") and name.endswith(".json") for name in names)


def test_the_wheel_holds_the_manual_itself(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    assert archive.read("mnemos/tui/manual.md") == (ROOT / "docs" / "cli.md").read_bytes()


def test_the_wheel_names_its_command_and_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    assert "mnemos = mnemos.tui.start:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in archive.namelist()
    top_level = {name.split("/")[0] for name in archive.namelist()}
    assert top_level == {"mnemos", info}, "generic top-level names would overwrite other packages"


def test_the_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import mnemos, mnemos.tui.main; print(mnemos.__file__)"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(tmp_path / "mnemos" / "__init__.py")


@pytest.mark.parametrize("room", ROOMS)
def test_editable_installs_reach_the_rooms_through_relative_links(room: str) -> None:
    link = ROOT / "src" / "mnemos" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..", "..", room)
    assert link.resolve() == ROOT / room
