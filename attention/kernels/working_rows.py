"""The working memory of each row of a decode step, as the kernels find it.

Rows belong to caches of their own, of any capacity and anywhere in memory: what differs from one token to the
next lies in one small tensor, so that a captured graph serves every conversation.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

# Rows of `WorkingRows.fields`.
TOKEN = 0  # id of the token that is run
SLOT = 1  # where its keys and values go
LENGTH = 2  # slots seen, the new one included; 0 for a row that pads the batch
PREFIX = 3  # slots in front of the memories
FIRST_PREFIX = 4  # first slot of the prefix that a layer with a window sees
FIRST_WORKING = 5  # first slot behind the prefix that it sees
K_AT = 6  # address of the keys, in bytes
V_AT = 7  # address of the values
CAPACITY = 8  # slots of the buffers
FIELDS = 9


@dataclass(slots=True)
class WorkingRows:
    """Where each row of a batch has its keys and values, `[layers, kv_heads, capacity, head_dim]` each."""

    fields: Tensor  # [FIELDS, rows], int64
    kv_heads: int
    buffers: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)  # the same, for the torch path

    @classmethod
    def empty(cls, rows: int, kv_heads: int, device: torch.device | str) -> "WorkingRows":
        """Rows that all pad the batch."""
        return cls(torch.zeros(FIELDS, rows, dtype=torch.int64, device=device), kv_heads, [None] * rows)

    @property
    def rows(self) -> int:
        return self.fields.shape[1]
