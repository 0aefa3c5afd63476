"""Block-sparse attention on a CUDA device: gradients against the twin in float64, and a layer that trains."""

import pytest
import torch
from torch import Tensor

from mnemos.attention.kernels.dispatch import block_sparse, forced
from mnemos.attention.kernels.naive.block_sparse import block_sparse as plain
from mnemos.attention.kernels.read_blocks import ReadBlocks
from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.patterns.msa_every import MsaEvery

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MOST = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # of the norm


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors of floats are full of NaN: what no kernel wrote shows."""
    plain_empty = torch.empty

    def empty(*args: object, **kwargs: object) -> Tensor:
        tensor = plain_empty(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 1)

    monkeypatch.setattr(torch, "empty", empty)


def inputs(
    dtype: torch.dtype, group: int, dim: int, tokens: int, before: int, block_keys: int
) -> tuple[list[Tensor], ReadBlocks]:
    torch.manual_seed(dim + tokens)
    sequences, kv_heads, blocks, reads = 3, 2, 19, 7

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda").to(dtype)

    there = torch.rand(sequences, before + tokens, device="cuda") < 0.9
    there[0, -1] = True
    there[-1, before + tokens // 2 :] = False
    visible = torch.rand(sequences, tokens, reads, device="cuda") < 0.3
    visible[:, 0, -1] = True
    memory = ReadBlocks(
        drawn(blocks, block_keys, kv_heads, dim),
        drawn(blocks, block_keys, kv_heads, dim),
        torch.randint(1, block_keys + 1, (blocks,), device="cuda"),
        torch.stack([torch.randperm(blocks, device="cuda")[:reads] for _ in range(sequences)]),
        visible,
    )
    own = (sequences, kv_heads, before + tokens, dim)
    return [drawn(sequences, kv_heads * group, tokens, dim), drawn(*own), drawn(*own), there], memory


def with_gradients(form, given: list[Tensor], memory: ReadBlocks, weight: Tensor, wide: bool) -> list[Tensor]:
    parts = [*given[:3], memory.k, memory.v]
    parts = [(part.double() if wide else part.clone()).requires_grad_() for part in parts]
    read = ReadBlocks(*parts[3:], memory.used, memory.blocks, memory.visible)
    out = form(*parts[:3], given[3], read, 0.11)
    out.backward(weight.to(out.dtype))
    return [out.detach(), *(part.grad for part in parts)]


@pytest.mark.parametrize("dtype", list(MOST))
@pytest.mark.parametrize(
    ("group", "dim", "tokens", "before", "block_keys"),
    [
        (3, 64, 997, 0, 8),
        (1, 80, 63, 5, 5),
        (4, 96, 65, 0, 70),
        (4, 128, 512, 0, 8),
        (4, 128, 129, 64, 1),
        (16, 256, 67, 0, 17),
        (2, 64, 1, 0, 8),
    ],
)
def test_output_and_gradients(
    group: int, dim: int, tokens: int, before: int, block_keys: int, dtype: torch.dtype
) -> None:
    given, memory = inputs(dtype, group, dim, tokens, before, block_keys)
    weight = torch.randn(given[0].shape, device="cuda").to(dtype)
    ours, again = (with_gradients(block_sparse, given, memory, weight, wide=False) for _ in range(2))
    exact = with_gradients(plain, given, memory, weight, wide=True)
    for name, mine, twin in zip(("out", "dq", "dk", "dv", "block dk", "block dv"), ours, exact, strict=True):
        error = (mine.double() - twin).norm() / twin.norm()
        assert error < MOST[dtype], f"{name}: {error}"
    assert all(torch.equal(*pair) for pair in zip(ours, again, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_trains_as_the_torch_path_does(autocast: bool) -> None:
    torch.manual_seed(3)
    sizes = {"heads": 8, "kv_heads": 2, "head_dim": 64, "document": 128, "pool": 16, "top_k": 3}
    mixer = MsaEvery(MixerConfig(dim=96, **sizes)).cuda()
    x, positions = torch.randn(2, 1000, 96, device="cuda"), torch.arange(1000, device="cuda").repeat(2, 1)
    found = {}
    for path in ("naive", "triton"):
        mixer.zero_grad()
        with forced(path), torch.autocast("cuda", torch.bfloat16, enabled=autocast):  # type: ignore[arg-type]
            loss = mixer(x, positions)[0].float().square().mean()
        loss.backward()
        found[path] = [loss.detach(), *(p.grad.clone() for p in mixer.parameters() if p.grad is not None)]
    for mine, twin in zip(found["triton"], found["naive"], strict=True):
        assert (mine - twin).norm() / twin.norm() < (3e-2 if autocast else 1e-4)
