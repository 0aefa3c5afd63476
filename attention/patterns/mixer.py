"""An attention pattern as the model around it sees it: tokens mixed with earlier ones."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

PADDING = -1
"""The position of a token that is not there: nobody attends to it, and its output is zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerConfig:
    """Sizes of one layer's mixer, and the knobs of single patterns (each pattern reads only its own).

    Lengths are in tokens.
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    position: Literal["rope", "alibi", "none"] = "rope"
    rope_theta: float = 10_000.0
    seed: int = 0

    window: int = 128
    sinks: int = 4
    block: int = 64
    random_blocks: int = 2
    global_blocks: int = 1
    hash_rounds: int = 4
    bucket: int = 64
    clusters: int = 16
    features: int = 64
    segment: int = 128
    compression: int = 4
    compressed: int = 128
    neighbours: int = 32
    latent: int = 64
    document: int = 512
    pool: int = 64
    top_k: int = 4

    def __post_init__(self) -> None:
        """Raises ValueError where a size makes no sense for any pattern."""
        for field in fields(self):
            value, least = getattr(self, field.name), int(field.name not in _MAY_BE_ZERO)
            if isinstance(value, int) and field.name != "seed" and value < least:
                raise ValueError(f"{field.name} must be at least {least}, not {value}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.position not in ("rope", "alibi", "none"):
            raise ValueError(f"position must be 'rope', 'alibi' or 'none', not {self.position!r}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"RoPE turns pairs of numbers: head_dim must be even, not {self.head_dim}")


_MAY_BE_ZERO = {"sinks", "random_blocks", "global_blocks"}


@dataclass(frozen=True, slots=True)
class Complexity:
    """How the cost of one training pass grows with the sequence length n, as the paper states it.

    The exponents are those of the term that dominates for long sequences, all other sizes fixed.
    """

    time: str
    memory: str
    time_exponent: float
    memory_exponent: float


class MixerState:
    """What a mixer keeps of the tokens before, for one batch. Subclasses are dataclasses of tensors.

    A call never writes into the state that it was given, so one state can be gone on from twice.
    """

    def bytes(self) -> int:
        """Bytes of all tensors kept."""
        assert is_dataclass(self)
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))


StateKind = TypeVar("StateKind", bound=MixerState)


class Mixer(nn.Module, ABC):
    """One attention pattern. Projections in and out are its own; norms and residuals belong to the layer.

    Causal: an output depends on no later token. Read step by step it gives what it gives at once, where
    `exact_steps` says so.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    complexity: ClassVar[Complexity]
    exact_steps: ClassVar[bool] = True

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def initial_state(self, batch: int) -> MixerState:
        """The state before the first token of `batch` sequences."""

    @abstractmethod
    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        """Mixes tokens with those before them.

        Args:
            x: [batch, tokens, dim].
            positions: [batch, tokens] int64, rising within a sequence; `PADDING` for tokens that are not
                there. Where a position is not above the one before it, a new document begins; only patterns
                that know documents care.
            state: None for a whole sequence at once (training). Otherwise what an earlier call or
                `initial_state` returned: x goes on from there.

        Returns:
            [batch, tokens, dim], zero where padded, and the state after x (None when none was given).

        Raises:
            ValueError: shapes that do not agree, or a state of another mixer.
        """

    @abstractmethod
    def operations(self, tokens: int) -> int:
        """Multiply-adds of the mixing itself (scores and sums over tokens, all heads, no projections) in one
        forward pass of one sequence.
        """


def check_inputs(config: MixerConfig, x: Tensor, positions: Tensor) -> None:
    """Raises ValueError unless x is [batch, tokens >= 1, dim] and positions [batch, tokens] int64."""
    if x.dim() != 3 or x.shape[-1] != config.dim or x.shape[1] == 0:
        raise ValueError(
            f"x must be [batch, tokens, {config.dim}] with at least one token, not {list(x.shape)}"
        )
    if positions.shape != x.shape[:2] or positions.dtype != torch.int64:
        raise ValueError(
            f"positions must be int64 of shape {list(x.shape[:2])}, "
            f"not {positions.dtype} of {list(positions.shape)}"
        )


def check_state(state: MixerState, kind: type[StateKind], batch: int) -> StateKind:
    """The state as the kind that a mixer expects.

    Raises:
        ValueError: it is another mixer's, or of another number of sequences.
    """
    if not isinstance(state, kind):
        raise ValueError(f"the state must be this mixer's own {kind.__name__}, not a {type(state).__name__}")
    assert is_dataclass(state)
    first = next(value for field in fields(state) if isinstance(value := getattr(state, field.name), Tensor))
    if len(first) != batch:
        raise ValueError(f"the state is of {len(first)} sequences and x of {batch}; they must agree")
    return state
