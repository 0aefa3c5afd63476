"""KV payloads of the bank, held against the model that is to read them from pages."""

from collections.abc import Mapping

from mnemos.attention.config import ModelConfig
from mnemos.attention.gpu.page_room import Key
from mnemos.attention.kernels.page_layout import PayloadPages, read_head
from mnemos.errors import BankUnreadableError, ModelMismatchError

_BITS_AT = 4  # in a KV payload


def checked_payloads(
    payloads: Mapping[Key, bytes], config: ModelConfig, bits: int
) -> dict[Key, PayloadPages]:
    """Those of `bits`, as pages. Raises BankUnreadableError for a malformed one, ModelMismatchError for one
    of another model.
    """
    found: dict[Key, PayloadPages] = {}
    for key, payload in payloads.items():
        if len(payload) > _BITS_AT and payload[_BITS_AT] == 32:  # raw fp32 has no pages
            continue
        try:
            head = read_head(payload)
        except ValueError as error:
            raise BankUnreadableError(f"{error}; run `mnemos bank verify --deep`") from None
        if (head.layers, head.kv_heads, head.head_dim) != (config.layers, config.kv_heads, config.head_dim):
            raise ModelMismatchError(
                "a memory's KV was made by a model of another shape; run `mnemos bank reencode` with the "
                "model to use"
            )
        if head.bits == bits:
            found[key] = PayloadPages(payload, head)
    return found
