"""`msa_config` as it is read, and routing scores: one folded query beside a product for every head."""

import pytest
import torch

from mnemos.attention.msa_config import MsaConfig, msa_config_from
from mnemos.attention.msa_router import (
    chunk_scores,
    chunk_scores_naive,
    document_scores,
    routing_keys,
    top_documents,
)
from mnemos.errors import InvalidWeightsError

LAYERS = 4
PUBLISHED = {
    "router_layer_idx": "2,3",
    "aux_loss_method": "INFONCE_DECOUPLE",
    "decouple_router": True,
    "top_k_docs": 16,
    "pooling_kernel_size": 64,
    "head_reduce_method": "mean",
    "query_reduce_method": "max",
    "chunk_reduce_method": "max",
    "decouple_pooling_mode": "mean",
}


@pytest.mark.parametrize("loss", ["INFONCE", "INFONCE_DECOUPLE"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "tokens", "chunks", "dim"), [(4, 2, 1, 1, 2), (9, 3, 7, 65, 16)]
)
def test_one_folded_query_scores_as_every_head_does(
    loss: str, heads: int, kv_heads: int, tokens: int, chunks: int, dim: int
) -> None:
    msa = msa_config_from("m", PUBLISHED | {"aux_loss_method": loss}, LAYERS)
    generator = torch.Generator().manual_seed(heads)
    queries = torch.randn(heads, tokens, dim, generator=generator)
    keys = routing_keys(torch.randn(kv_heads, chunks, dim, generator=generator), msa)
    folded, naive = chunk_scores(queries, keys, msa), chunk_scores_naive(queries, keys, msa)
    assert torch.allclose(folded, naive, atol=1e-5)
    assert folded.shape == (chunks,)


def test_of_equal_documents_the_earlier_is_chosen() -> None:
    assert top_documents(torch.tensor([0.0, 2.0, 2.0, 1.0, 2.0]), 2) == [1, 2]
    assert top_documents(torch.tensor([3.0]), 16) == [0]


def test_a_document_scores_by_its_own_chunks_alone() -> None:
    scores = torch.tensor([1.0, 5.0, -3.0, -1.0, 2.0])
    best = msa_config_from("m", PUBLISHED, LAYERS)
    assert document_scores(scores, [2, 2, 1], best).tolist() == [5.0, -1.0, 2.0]
    mean = msa_config_from("m", PUBLISHED | {"chunk_reduce_method": "mean"}, LAYERS)
    assert document_scores(scores, [2, 2, 1], mean).tolist() == [3.0, -2.0, 2.0]


def test_the_configuration_is_read_as_published() -> None:
    msa = msa_config_from("m", {}, 3)
    assert msa == MsaConfig((0, 1, 2), 16, 64, "max", "max", "max", False, "INFONCE")
    assert [msa_config_from("m", PUBLISHED | {"router_layer_idx": named}, 36).router_layers for named in
            ("35,18", [18, 35], "all")] == [(18, 35), (18, 35), tuple(range(36))]  # fmt: skip
    cosine = {loss: msa_config_from("m", {"aux_loss_method": loss}, 1).is_cosine for loss in
              ("INFONCE", "INFONCE_DECOUPLE", "BCE")}  # fmt: skip
    assert cosine == {"INFONCE": True, "INFONCE_DECOUPLE": False, "BCE": False}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head_reduce_method", "median"),
        ("query_reduce_method", "sum"),
        ("chunk_reduce_method", "last"),
        ("decouple_pooling_mode", "max"),
        ("aux_loss_method", "TRIPLET"),
        ("top_k_docs", 0),
        ("pooling_kernel_size", "64"),
        ("decouple_router", "yes"),
        ("router_layer_idx", "2,9"),
        ("router_layer_idx", "2,2"),
        ("router_layer_idx", []),
        ("router_layer_idx", "half"),
        ("router_layer_idx", 3),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidWeightsError, match=f"tiny: msa_config {field}"):
        msa_config_from("tiny", PUBLISHED | {field: value}, LAYERS)
