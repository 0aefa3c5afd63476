"""`msa_config` of a checkpoint with Memory Sparse Attention (MSA, arXiv 2603.23516), read strictly.

What the paper leaves open is as in the published inference code of EverMind-AI/MSA: a field that is absent
has that code's default, and routing vectors are L2-normalised only where `aux_loss_method` is exactly
`INFONCE`; checkpoints of other losses (`INFONCE_DECOUPLE`, as MSA-4B, or `BCE`) are routed by the scaled dot
product. Fields that training alone reads (loss weights, `infonce_loss_temp`, `rewrite_position`) change
nothing here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mnemos.errors import InvalidWeightsError

HeadReduce = Literal["mean", "max"]
QueryReduce = Literal["max", "mean", "last"]
ChunkReduce = Literal["max", "mean"]

_METHODS = {
    "head_reduce_method": ("mean", "max"),
    "query_reduce_method": ("max", "mean", "last"),
    "chunk_reduce_method": ("max", "mean"),
    "decouple_pooling_mode": ("mean",),
    "aux_loss_method": ("INFONCE", "INFONCE_DECOUPLE", "INFONCE_FOCAL", "INFONCE_DECOUPLE_FOCAL", "BCE"),
}
_DEFAULTS: dict[str, Any] = {
    "router_layer_idx": "all",
    "top_k_docs": 16,
    "pooling_kernel_size": 64,
    "head_reduce_method": "max",
    "query_reduce_method": "max",
    "chunk_reduce_method": "max",
    "decouple_pooling_mode": "mean",
    "aux_loss_method": "INFONCE",
    "decouple_router": False,
}


@dataclass(frozen=True, slots=True)
class MsaConfig:
    """How one checkpoint pools, routes and reads its documents."""

    router_layers: tuple[int, ...]  # ascending: the layers that route and read documents
    top_k: int  # documents read per layer
    pooling_tokens: int  # of a document, averaged into one chunk
    head_reduce: HeadReduce
    query_reduce: QueryReduce
    chunk_reduce: ChunkReduce
    decouple_router: bool  # routing by projections of its own, otherwise by queries and pooled keys
    loss_method: str

    @property
    def is_cosine(self) -> bool:
        """Whether routing queries and keys are L2-normalised; otherwise their product is scaled."""
        return self.loss_method == "INFONCE"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "MsaConfig":
        """What `dataclasses.asdict` made of one, through JSON."""
        return cls(**{**data, "router_layers": tuple(data["router_layers"])})


def msa_config_from(name: str, described: Mapping[str, Any], layers: int) -> MsaConfig:
    """The `msa_config` object of the model called `name`, which has `layers` layers.

    Raises InvalidWeightsError naming the field that asks for what isn't supported.
    """
    if not isinstance(described, Mapping):
        raise InvalidWeightsError(f"model {name}: msa_config in its config.json is not an object")
    filled = _DEFAULTS | {key: value for key, value in described.items() if value is not None}
    for key, known in _METHODS.items():
        if filled[key] not in known:
            raise InvalidWeightsError(
                f"model {name}: msa_config {key} is '{filled[key]}'; supported: {', '.join(known)}"
            )
    for key in ("top_k_docs", "pooling_kernel_size"):
        if type(filled[key]) is not int or filled[key] < 1:
            raise InvalidWeightsError(
                f"model {name}: msa_config {key} is {filled[key]!r}; it must be a whole number above zero"
            )
    if not isinstance(filled["decouple_router"], bool):
        raise InvalidWeightsError(
            f"model {name}: msa_config decouple_router is {filled['decouple_router']!r}, not true or false"
        )
    return MsaConfig(
        router_layers=_router_layers(name, filled["router_layer_idx"], layers),
        top_k=filled["top_k_docs"],
        pooling_tokens=filled["pooling_kernel_size"],
        head_reduce=filled["head_reduce_method"],
        query_reduce=filled["query_reduce_method"],
        chunk_reduce=filled["chunk_reduce_method"],
        decouple_router=filled["decouple_router"],
        loss_method=filled["aux_loss_method"],
    )


def _router_layers(name: str, named: object, layers: int) -> tuple[int, ...]:
    """`"all"`, a list of indices, or indices with commas between them."""
    if named == "all":
        return tuple(range(layers))
    given = named.split(",") if isinstance(named, str) else named
    try:
        indices = sorted(int(index) for index in given)  # type: ignore[attr-defined]  # refused below
    except (TypeError, ValueError):
        indices = []
    if not indices or indices[0] < 0 or indices[-1] >= layers or len(set(indices)) < len(indices):
        raise InvalidWeightsError(
            f"model {name}: msa_config router_layer_idx is {named!r}; it must be 'all' or name layers from 0 "
            f"to {layers - 1}, each once"
        )
    return tuple(indices)
