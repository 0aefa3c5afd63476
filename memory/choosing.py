"""A selector as the store takes it: text parsed, and each `like` made the ids that the model finds for it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mnemos.memory.records import LikeMatch
from mnemos.memory.where import parse_where
from mnemos.store.selectors import Among, Condition, Like, conditions, replaced

if TYPE_CHECKING:
    from mnemos.memory.recall import Recaller


def has_like(where: Condition | str) -> bool:
    """Whether a model is needed. InvalidSelectorError."""
    condition = parse_where(where) if isinstance(where, str) else where
    return any(isinstance(node, Like) for node in conditions(condition))


def choose(
    where: Condition | str, namespace: str, recaller: "Callable[[], Recaller]"
) -> tuple[Condition, tuple[LikeMatch, ...]]:
    """The condition without `like`, and what each `like` found. `recaller` is asked for only if there is one.

    Raises InvalidSelectorError, and what loading a model raises.
    """
    condition = parse_where(where) if isinstance(where, str) else where
    found: dict[Like, LikeMatch] = {}
    for node in conditions(condition):
        if isinstance(node, Like) and node not in found:
            found[node] = recaller().like(node.text, namespace=namespace, threshold=node.threshold)

    def among(node: Condition) -> Condition:
        return Among(tuple(hit.id for hit in found[node].hits)) if isinstance(node, Like) else node

    return replaced(condition, among), tuple(found.values())
