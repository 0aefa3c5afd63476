"""What a grammar costs: milliseconds a token, over the vocabulary of a model. Prints one JSON document.

Run it with `python -m mnemos.agent.tools.bench_mask [MODEL]`.
"""

import json
import statistics
import sys
import time
from typing import Literal

from pydantic import BaseModel

from mnemos.agent.abilities import Abilities, Answerer
from mnemos.agent.output import OutputType
from mnemos.agent.tools.tool import tool
from mnemos.agent.tools.toolbox import Toolbox
from mnemos.attention.models import LanguageModel, load
from mnemos.attention.sampling import Sampler, Sampling

_SAID = "The weather in Porto is mild, and it will rain for most of the week. Take an umbrella with you."


class _Order(BaseModel):
    item: str
    count: int
    colours: list[Literal["red", "green"]]
    note: str | None


@tool
def _look_up(city: str, days: int = 1) -> str:
    """Look something up."""
    return f"{city} {days}"


def measure(model: LanguageModel) -> dict[str, dict[str, float]]:
    """For words, a call and an output: ms of the mask at each token, of its first use, and of sampling."""
    order = _Order(item="A small lamp", count=3, colours=["red", "green"], note="By the window, please.")
    call = '<tool_call>\n{"name": "_look_up", "arguments": {"city": "Porto", "days": 3}}\n</tool_call>'
    talker = Answerer(model, Abilities(Toolbox([_look_up])))
    writer = Answerer(model, Abilities(Toolbox([]), OutputType(_Order)))
    texts = {"words": (talker, _SAID), "call": (talker, call)}
    texts["output"] = (writer, json.dumps(order.model_dump()))
    return {name: _walked(answerer, text) for name, (answerer, text) in texts.items()}


def _walked(answerer: Answerer, text: str) -> dict[str, float]:
    """The masks along a text that fits."""
    model, tools = answerer.model, list(answerer.abilities.toolbox.tools.values())
    answerer.mask(tools, must_call=False)
    logits = model.decoder.forward(model.tokenizer.encode("Hello"), model.decoder.new_cache(64))  # [vocab]
    sampler = Sampler(Sampling())
    masked: list[float] = []
    sampled: list[float] = []
    first = 0.0
    for _ in range(5):
        mask = answerer.mask(tools, must_call=False)
        assert mask is not None, "there are tools or an output type"
        tokens: list[int] = []
        for token in model.tokenizer.encode(text, special=True):
            started = time.perf_counter()
            mask.is_finished(tokens)
            allowed = mask.allowed(tokens)
            between = time.perf_counter()
            sampler(logits, tokens, allowed)
            masked.append((between - started) * 1e3)
            sampled.append((time.perf_counter() - between) * 1e3)
            first = first or masked[0]
            tokens.append(token)
    return {
        "mask_ms": statistics.median(masked),
        "mask_p95_ms": statistics.quantiles(masked, n=20)[-1],
        "first_mask_ms": first,
        "sample_ms": statistics.median(sampled),
    }


if __name__ == "__main__":
    print(json.dumps(measure(load(sys.argv[1] if len(sys.argv) > 1 else None)), indent=2))
