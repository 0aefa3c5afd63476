"""Two processes (gloo) against one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.attention.training import sharing_workload

from mnemos.attention.training.checkpoints import latest

ROOT = Path(__file__).resolve().parents[3]


def start(rank: int, world: int, port: int, *arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def together(*arguments: str) -> list[str]:
    """What two processes with these arguments print; both must succeed."""
    port = free_port()
    running = [start(rank, 2, port, *arguments) for rank in range(2)]
    printed = []
    for process in running:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        printed.append(out)
    return printed


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """Rows shared, and documents of each row shared (five of one row and none of another)."""
    together("-m", "tests.attention.training.sharing_workload", str(tmp_path))
    for sharing in ("rows", "documents"):
        alone = sharing_workload.gradients(sharing)
        shared = torch.load(tmp_path / f"{sharing}.pt")
        assert shared.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(shared[name], gradient, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.slow
def test_a_run_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    options = (
        "--task needle --dim 16 --heads 2 --steps 6 --batch 4 --length 66 --document 16 --facts 1 --pool 4"
    )
    more = "--top-k 1 --documents-per-group 2 --json"
    options = (
        "--task needle --dim 16 --heads 2 --steps 6 --batch 4 --length 66 --document 16 --facts 1 --pool 4"
    )
    more = "--top-k 1 --documents-per-group 2 --json"
    command = [
        "-c",
        "from mnemos.tui.main import main; main()",
        "train",
        "lm",
        *options.split(),
        *more.split(),
    ]
    printed = together(*command, "--out", str(tmp_path / "two"), "--share", "documents")
    assert '"processes": 2' in printed[0] and printed[1] == ""
    alone = start(0, 1, free_port(), *command, "--out", str(tmp_path / "one"))
    _, err = alone.communicate(timeout=200)
    assert alone.returncode == 0, err
    ours, theirs = (latest(tmp_path / name).model().state_dict() for name in ("one", "two"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=name)
