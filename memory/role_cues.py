"""Who says what in a chat with an assistant: the facts are mostly in what its user says."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mnemos.store.nearby import Place

_ASSISTANT = "assistant"
ROLES = frozenset({"user", _ASSISTANT})  # everybody's: to name them tells nothing apart
# In English: what did you recommend, the ideas you gave me, your advice.
_ASKS_WHAT_WAS_SAID = re.compile(
    r"\byou(?:'ve|'d| have| had)? (?:said|say|told|tell|recommend\w*|suggest\w*|mention\w*|gave|give|given"
    r"|wrote|explain\w*|propos\w*|list\w*|advised?|answer\w*)\b"
    r"|\byour (?:\w+ )?(?:advice|tips?|ideas?|answers?|suggestions?|recommendations?|list|plan)\b",
    re.IGNORECASE,
)


def assistant_signal(query: str, ids: Sequence[str], placed: Mapping[str, Place]) -> Tensor | None:
    """1 where the assistant said the memory, `[memories]`. None where it said none of them, and for a query
    that asks for what it said.
    """
    if _ASKS_WHAT_WAS_SAID.search(query.replace("\u2019", "'")):
        return None
    said = [float(_is_assistant(placed.get(each))) for each in ids]
    return torch.tensor(said) if any(said) else None


def _is_assistant(place: Place | None) -> bool:
    return place is not None and place.speaker is not None and place.speaker.casefold() == _ASSISTANT
