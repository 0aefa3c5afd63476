"""Which device a model runs on, where there is no GPU and where there seems to be one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mnemos.attention.config import ModelConfig, layer_shapes
from mnemos.attention.gpu import devices
from mnemos.attention.models import load
from mnemos.attention.weights import LayerWeights, Weights
from mnemos.errors import ModelError, UsageError

CONFIG = ModelConfig(
    name="tiny", architecture="llama", vocab_size=50, hidden_size=64, layers=1, heads=4, kv_heads=2,
    head_dim=64, intermediate_size=64,
    rms_norm_eps=1e-6, rope_theta=10000.0, max_positions=512, tie_embeddings=True,
    bos_id=None, eos_ids=(0,),
)  # fmt: skip


def weights() -> Weights:
    layer = LayerWeights(**{name: torch.ones(shape) for name, shape in layer_shapes(CONFIG).items()})
    embed = torch.ones(CONFIG.vocab_size, CONFIG.hidden_size)
    return Weights(embed, torch.ones(CONFIG.hidden_size), embed, [layer])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A GPU as PyTorch tells of one."""
    there = {"free": 1 << 30, "count": 1}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["count"] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there["count"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (there["free"], 1 << 31))
    return there


@pytest.mark.parametrize("named", ["gpu", "cuda:", "cuda:x", "mps"])
def test_a_name_that_means_nothing(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cpu, cuda or cuda:N"):
        load("no-such-model", device=named)
    monkeypatch.setenv("MNEMOS_DEVICE", named)
    with pytest.raises(UsageError, match="cpu, cuda or cuda:N"):
        load("no-such-model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("named", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_an_error_before_anything_is_fetched(named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no CUDA device.*MNEMOS_DEVICE=cpu"):
        load(tmp_path / "nothing", device=named)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for named in (None, "auto", "cpu"):
        assert devices.pick_device(named, CONFIG, weights(), torch.float32).type == "cpu"


def test_a_gpu_that_is_there_is_taken(gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.pick_device(None, CONFIG, weights(), torch.float32).type == "cuda"
    assert devices.pick_device("cuda:0", CONFIG, weights(), torch.float32).index == 0
    assert devices.pick_device("cpu", CONFIG, weights(), torch.float32).type == "cpu"
    monkeypatch.setenv("MNEMOS_DEVICE", "cpu")
    assert devices.pick_device(None, CONFIG, weights(), torch.float32).type == "cpu"
    with pytest.raises(ModelError, match="there are 1, counted from 0"):
        devices.check_device("cuda:1")


@pytest.mark.parametrize(
    ("config", "free", "why"),
    [
        (CONFIG, 1000, "MiB are free"),
        (replace(CONFIG, head_dim=48), 1 << 30, "4 heads of 48"),
        (replace(CONFIG, heads=34, kv_heads=2), 1 << 30, "34 heads of 64"),
    ],
)
def test_what_does_not_fit_runs_on_the_cpu_unless_it_was_told_to(
    config: ModelConfig, free: int, why: str, gpu: dict[str, int]
) -> None:
    gpu["free"] = free
    assert devices.pick_device("auto", config, weights(), torch.float32).type == "cpu"
    with pytest.raises(ModelError, match=why):
        devices.pick_device("cuda", config, weights(), torch.float32)
