"""The rival of paging: the same memories read again as text, measured on the same model in the same
process.
"""

import time

from mnemos.agent.agent import Agent
from mnemos.agent.events import Reply
from mnemos.agent.prompt import PromptBuilder


def reread_ms(agent: Agent, text: str, reply: Reply) -> float:
    """Milliseconds to the first token had the reply's memories been pasted in as text.

    All else (writing the message down, routing) is counted as it was in the reply.
    """
    model, encoder = agent.model, agent.bank.recaller(agent.model).encoder
    prompts = PromptBuilder(model, None)
    lines = [
        token
        for recalled in reply.memories
        for line in encoder.lines_of(recalled.memory)[:1]
        for token in line
    ]
    prompt = [
        *encoder.prefix_tokens,
        *lines,
        *prompts.with_memories(),
        *prompts.message(text),
        *prompts.turn.reply_head,
    ]
    started = time.perf_counter()
    model.decoder.forward(prompt, model.decoder.new_cache(len(prompt)))
    usage = reply.usage
    prefill_ms = (time.perf_counter() - started) * 1e3
    return usage.first_token_ms - usage.page_ms - usage.prefill_ms + prefill_ms
