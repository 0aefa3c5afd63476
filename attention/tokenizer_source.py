"""What a checkpoint says about its text: tokenizer definition, control tokens, chat template."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

# Tokens that end a turn under one of these names do so whatever the metadata's single `eos` says.
END_OF_TURN_NAMES = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<|eot|>",
     "<end_of_turn>", "</s>"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """A tokenizer in the JSON form of the `tokenizers` library, and what lies beside it in a checkpoint."""

    definition: str  # tokenizer.json
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    chat_template: str | None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over everything that decides which ids a text becomes."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; `from_json` reads it back."""
        return asdict(self) | {"eos_ids": list(self.eos_ids)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TokenizerSource":
        return cls(**(data | {"eos_ids": tuple(data["eos_ids"])}))
