"""The answering part of a turn: decode, run what the model calls, read the results behind it, go on.

The KV of a step stays where it is; the next one reads only what is new.
"""

import asyncio
import json
from collections.abc import Callable, Generator, Sequence
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from mnemos.agent.abilities import Answerer
from mnemos.agent.events import TokenDelta, ToolCall, ToolResult
from mnemos.agent.prompt import PromptBuilder
from mnemos.agent.tools.context import ToolContext, TurnMemories
from mnemos.agent.tools.formats import Call
from mnemos.agent.tools.running import run_tool
from mnemos.agent.tools.tool import Tool
from mnemos.agent.tools.toolbox import Budget, validation_text
from mnemos.attention.generate import Generation, StopReason, generate, text_pieces
from mnemos.attention.kv import KVCache
from mnemos.attention.sampling import Sampling
from mnemos.attention.tokenizer import Detokenizer
from mnemos.errors import ContextOverflowError, InvalidOutputError
from mnemos.memory.records import Memory

_REPLY_ROOM = 128  # tokens of the window that results leave free for the reply
_CUT = "\n[cut: the rest does not fit the model's window]"
_AGAIN = "You may call it again with other arguments, or answer without it."
_NO_MORE = "It can't be called any more in this turn; answer without it."


class Answering:
    """One reply. `run` gives its events; the attributes say what there is of it so far."""

    def __init__(
        self,
        answerer: Answerer,
        prompts: PromptBuilder,
        memories: TurnMemories,
        *,
        sampling: Sampling,
        history: Sequence[int],
        drafts: Sequence[Sequence[int]] = (),
        should_stop: Callable[[], bool],
        pieces: list[str],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`pieces` gets the reply's words as they come. `drafts` are what it may quote, `loop` is where async
        tools run.
        """
        self.pieces = pieces
        self.output: Any = None
        self.stop_reason = StopReason.EOS
        self.decoded_tokens = 0
        self.read_tokens = 0  # prefilled behind the prompt: results and their frames
        self._answerer, self._abilities, self._model = answerer, answerer.abilities, answerer.model
        self._prompts, self._memories = prompts, memories
        self._sampling, self._history, self._drafts = sampling, history, drafts
        self._should_stop, self._loop = should_stop, loop
        self._budget = Budget(self._abilities.toolbox)
        self._calls = 0
        self._misfits = 0  # outputs that did not fit

    def run(self, logits: Tensor, cache: KVCache) -> Generator[TokenDelta | ToolCall | ToolResult]:
        """Decodes from the logits of the prompt's last token until the reply is whole or cut off.

        Raises `InvalidOutputError` when the model does not manage the output type.
        """
        step = 0
        while True:
            step += 1
            tools = self._budget.available() if step < self._abilities.max_steps else []
            generation = self._generate(cache, logits, tools, is_first=step == 1)
            text = yield from self._spoken(generation)
            if self.stop_reason in (StopReason.INTERRUPTED, StopReason.WINDOW):
                self._check_whole()
                return
            calls = self._answerer.tools.calls.parse(text) if tools and self._answerer.tools else []
            if calls:
                results = yield from self._run(calls, step)
                if results is None:
                    self.stop_reason = StopReason.INTERRUPTED
                    return
                behind = self._results(generation, results, cache)
            elif self._abilities.output is None:
                return
            else:
                problem = self._read_output(text)
                if problem is None:
                    yield self._say(text)
                    return
                behind = self._asked_again(generation, problem)
            try:
                logits = self._model.decoder.forward(behind, cache)
            except ContextOverflowError:
                self.stop_reason = StopReason.WINDOW
                self._check_whole()
                return
            self.read_tokens += len(behind)

    def _generate(
        self, cache: KVCache, logits: Tensor, tools: Sequence[Tool[..., Any]], *, is_first: bool
    ) -> Generation:
        must_call = is_first and self._abilities.tool_choice == "required"
        return generate(
            self._model.decoder,
            cache,
            logits,
            self._sampling,
            eos_ids=self._model.tokenizer.eos_ids,
            history=self._history,
            should_stop=self._should_stop,
            drafts=self._drafts,
            mask=self._answerer.mask(tools, must_call=must_call),
        )

    def _spoken(self, generation: Generation) -> Generator[TokenDelta, None, str]:
        """Sends the words of a step as they come, without those of calls; the step's whole text.

        An output is sent when it is whole and fits.
        """
        prompt, has_output = self._answerer.tools, self._abilities.output is not None
        detokenizer = Detokenizer(self._model.tokenizer, special=prompt is not None)
        text, shown, is_apart = "", 0, bool(self.pieces)
        for piece in text_pieces(generation, detokenizer, () if has_output else self._sampling.stop):
            text += piece
            words = text[shown:] if prompt is None else text[shown : prompt.calls.spoken(text)]
            if words and not has_output:
                shown += len(words)
                if is_apart:  # words of one step and of the next are lines of their own
                    words, is_apart = f"\n{words.lstrip()}", False
                yield self._say(words)
        assert generation.stop_reason is not None, "an exhausted generation says why it ended"
        self.stop_reason = generation.stop_reason
        self.decoded_tokens += len(generation.tokens)
        if shown < len(text) and not has_output and not (prompt and prompt.calls.parse(text)):
            yield self._say(text[shown:])  # what might have become a call, and did not
        return text

    def _say(self, words: str) -> TokenDelta:
        self.pieces.append(words)
        return TokenDelta(text=words)

    # calls

    def _run(
        self, calls: Sequence[Call], step: int
    ) -> Generator[ToolCall | ToolResult, None, list[str] | None]:
        """Runs the calls in order; what the model is told of each. None when the turn was stopped."""
        told: list[str] = []
        for call in calls:
            self._calls += 1
            call_id = f"call{self._calls:05d}"
            yield ToolCall(call_id=call_id, name=call.name, arguments=call.arguments, step=step)
            result = self._result(call, call_id)
            if result is None:
                return None
            yield result
            told.append(result.text)
        return told

    def _result(self, call: Call, call_id: str) -> ToolResult | None:
        tool = self._budget.find(call.name)
        problem, arguments = call.problem, dict[str, Any]()
        if problem is None and tool is None:
            names = ", ".join(each.name for each in self._budget.available())
            problem = f"no tool can be called by that name; there are: {names or 'none'}"
        elif problem is None and tool is not None:
            try:
                arguments = tool.parameters.model_validate(call.arguments).arguments()
            except ValidationError as error:
                problem = f"the arguments do not fit: {validation_text(error)}"
        if problem is not None or tool is None:
            return self._failure(call, call_id, problem or "", 0.0)
        if tool.context is not None:
            arguments[tool.context] = ToolContext(call_id, self._memories)
        outcome = run_tool(tool, arguments, loop=self._loop, should_stop=self._should_stop)
        if outcome.text is None:
            return None
        if outcome.is_error:
            return self._failure(call, call_id, outcome.text, outcome.ms)
        kept: Memory | None = None
        if tool.is_remembered:
            kept = self._memories.keep_result(call.name, call.arguments, outcome.text)
        return ToolResult(
            call_id=call_id,
            name=call.name,
            text=outcome.text,
            is_error=False,
            ms=outcome.ms,
            memory_id=None if kept is None else kept.id,
        )

    def _failure(self, call: Call, call_id: str, problem: str, ms: float) -> ToolResult:
        advice = _AGAIN if self._budget.failed(call.name) else _NO_MORE
        text = f"Error: {problem}. {advice}"
        return ToolResult(call_id=call_id, name=call.name, text=text, is_error=True, ms=ms)

    def _results(self, generation: Generation, results: Sequence[str], cache: KVCache) -> list[int]:
        """Token ids that close the step of the calls, hold their results and open the next step.

        Results are cut to what the window has room for.
        """
        assert self._answerer.tools is not None, "calls come from tools"
        frame, encode = self._answerer.tools.frame(len(results)), self._model.tokenizer.encode
        taken = len(generation.pending) + sum(map(len, frame.parts)) + _REPLY_ROOM
        room = min(cache.capacity - cache.length, cache.max_positions - cache.next_position) - taken
        tokens = [*generation.pending, *frame.parts[0]]
        note = encode(_CUT)
        for index, (text, part) in enumerate(zip(results, frame.parts[1:], strict=True)):
            ids = encode(json.dumps(text, ensure_ascii=False)[1:-1] if frame.is_quoted else text)
            share = max(room // (len(results) - index), 0)
            if len(ids) > share:
                ids = [*ids[: max(share - len(note), 0)], *note]
            room -= len(ids)
            tokens += [*ids, *part]
        return tokens

    # output

    def _read_output(self, text: str) -> str | None:
        """Takes the output over, or says what is wrong with it."""
        assert self._abilities.output is not None, "asked for with an output type only"
        self.output, problem = self._abilities.output.parse(text)
        if problem is None:
            return None
        self._misfits += 1
        if self.stop_reason is StopReason.LENGTH:
            self._give_up(text, "it was cut off at max_tokens; raise Sampling.max_tokens or ask for less")
        if self._misfits > self._abilities.output_retries:
            self._give_up(text, f"it did not pass validation in {self._misfits} tries")
        return problem

    def _check_whole(self) -> None:
        """Raises `InvalidOutputError` where the window ended a reply that has to be an output."""
        if self._abilities.output is not None and self.stop_reason is StopReason.WINDOW:
            self._give_up("", "the model's window is full; start a new session or ask for less")

    def _give_up(self, text: str, why: str) -> None:
        self.pieces.append(text)
        raise InvalidOutputError(
            f"the model did not manage a reply of the output type: {why}. The exchange is kept as interrupted"
        )

    def _asked_again(self, generation: Generation, problem: str) -> list[int]:
        asked = f"That does not fit: {problem}. Reply again, with nothing but JSON."
        turn = self._prompts.turn
        return [*generation.pending, *turn.reply_tail, *self._prompts.message(asked), *turn.reply_head]
