"""MSA (arXiv 2603.23516) in which every document is the question to those before it.

For plain text, which has no question: a document, or a piece of `document` tokens, reads the `top_k` of all
earlier ones that score highest for its tokens so far. That is what `msa` does where a sequence comes token by
token, so here steps equal one call. Every token is scored against every earlier chunk, which is n^2 / pool
products of one head's width and no more: small beside the rest up to some hundred thousand tokens. Memory
grows with n.
"""

from typing import ClassVar

from mnemos.attention.patterns.mixer import Complexity
from mnemos.attention.patterns.msa import Msa
from mnemos.attention.patterns.registry import register


@register
class MsaEvery(Msa):
    """Pooled documents routed to each later one."""

    name: ClassVar[str] = "msa_every"
    complexity: ClassVar[Complexity] = Complexity("O(n^2 / pool)", "O(n)", 2.0, 1.0)
    exact_steps: ClassVar[bool] = True
    every: ClassVar[bool] = True

    def operations(self, tokens: int) -> int:
        """As for every mixer, for full documents whose tokens all read the same ones."""
        config, maps = self.config, self.projections
        total = 0
        for number in range(-(-tokens // config.document)):
            size = min(config.document, tokens - number * config.document)
            keys = size + min(number, config.top_k) * maps.chunks
            routing = size * number * maps.chunks * config.kv_heads * config.head_dim
            total += size * keys * config.heads * 2 * maps.key_dim + routing
        return total
