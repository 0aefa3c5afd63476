"""Groups of documents in passes of their own, against everything in one pass."""

import dataclasses

import pytest
import torch

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.training.batches import Batch, Sample, make_batch, next_tokens
from mnemos.attention.training.needle import NeedleSizes, NeedleTask
from mnemos.attention.training.objective import Weights, objective
from mnemos.errors import UsageError

_WEIGHTS = Weights(1.0, 0.5, 1e-3)
_MIXER = MixerConfig(
    dim=16, heads=4, kv_heads=2, head_dim=8, window=6, sinks=1, block=4, document=16, pool=4, top_k=2
)


def model(*layers: str) -> HybridModel:
    return HybridModel(HybridConfig(vocab=60, layers=layers, mixer=_MIXER, mlp_width=24)).double()


def uneven_batch() -> Batch:
    """Documents of many lengths, rows of different numbers of them, one without any, and padding."""
    random = torch.Generator().manual_seed(3)

    def sample(*lengths: int) -> Sample:
        documents = tuple(torch.randint(60, (length,), generator=random) for length in lengths)
        evidence = tuple(number == 1 for number in range(len(lengths) - 1))
        asks = torch.arange(lengths[-1]) % 3 != 1
        return Sample(documents, tuple(map(next_tokens, documents)), asks, evidence)

    return make_batch([sample(16, 1, 7, 13, 9), sample(5), sample(3, 16, 16, 2)])


def gradients(of: HybridModel, batch: Batch, group: int) -> tuple[list[float | None], list[torch.Tensor]]:
    of.zero_grad()
    found = objective(of, batch, _WEIGHTS, group=group)
    found.share.backward()
    losses = [float(found.share.detach()), found.next_token, found.router]
    return losses, [parameter.grad.clone() for parameter in of.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("layers", [("msa", "msa"), ("dense", "msa"), ("linear", "window", "msa")])
@pytest.mark.parametrize("group", [1, 3, 100])
def test_losses_and_gradients_are_those_of_one_pass(layers: tuple[str, ...], group: int) -> None:
    of, batch = model(*layers), uneven_batch()
    whole, parts = gradients(of, batch, 0), gradients(of, batch, group)
    assert parts[0] == pytest.approx(whole[0], rel=1e-9)
    assert whole[0][2] is not None and len(parts[1]) == len(whole[1])
    for found, wanted in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_a_row_of_padding_has_no_part_in_it() -> None:
    of, batch = model("window", "msa"), uneven_batch()
    more = Batch(*(torch.cat((part, part[:1])) for part in dataclasses.astuple(batch)))
    more.positions[-1], more.targets[-1], more.evidence[-1] = -1, -100, False
    wanted = gradients(of, batch, 0)
    for group in (0, 2):
        found = gradients(of, more, group)
        assert found[0] == pytest.approx(wanted[0], rel=1e-9)
        for one, other in zip(found[1], wanted[1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("group", [0, 2])
def test_in_bf16_it_comes_close(group: int) -> None:
    of, batch = model("linear", "window", "msa").float(), uneven_batch()
    wide = objective(of, batch, _WEIGHTS, group=group)
    narrow = objective(of, batch, _WEIGHTS, group=group, bf16=True)
    narrow.share.backward()
    assert (
        narrow.next_token == pytest.approx(wide.next_token, rel=0.02) and narrow.next_token != wide.next_token
    )
    assert narrow.share.dtype == torch.float32
    assert all(each.grad.isfinite().all() for each in of.parameters() if each.grad is not None)


def test_it_holds_the_activations_of_a_group() -> None:
    """The bytes kept for the backward pass grow with the pooled documents, and not with the documents."""

    def saved_bytes(documents: int, group: int) -> int:
        sizes = NeedleSizes(document=16, facts=2, keys=20, values=10, noise=10)
        task = NeedleTask(sizes, seed=0)
        batch = make_batch([task.sample(0, 16 * documents + 4)])
        of = model("msa", "msa")
        mine = {parameter.data_ptr() for parameter in of.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in mine:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            objective(of, batch, _WEIGHTS, group=group)
        return sum(kept.values())

    whole = saved_bytes(64, 0) - saved_bytes(32, 0)
    grouped = saved_bytes(64, 4) - saved_bytes(32, 4)
    assert grouped < whole / 4


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(UsageError, match="msa"):
        from mnemos.attention.training.document_passes import check_model

        check_model(model("dense", "window"))
    with pytest.raises(UsageError, match="no other that routes"):
        check_model(model("msa", "msa_every"))
    batch = uneven_batch()
    longer = dataclasses.replace(_MIXER, document=8)
    of = HybridModel(HybridConfig(vocab=60, layers=("msa",), mixer=longer, mlp_width=24)).double()
    with pytest.raises(UsageError, match="longer than the 8 tokens"):
        objective(of, batch, _WEIGHTS, group=2)
