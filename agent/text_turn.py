"""A turn whose reply another generator writes: the agent's model routes, the memories' words go out as text.

Provenance and forgetting are those of every turn: the reply depends on the memories that were sent, and an
erase takes it with them here. It can't reach what the generator's side has kept.
"""

import time
from collections.abc import Generator as Iter
from collections.abc import Sequence

from mnemos.agent.citing import cite
from mnemos.agent.events import Event, Recalled, TokenDelta, Usage
from mnemos.agent.generators import MAX_REPLY_CHARS, Finish, Generator, conversation
from mnemos.agent.turn import Turn
from mnemos.errors import GeneratorResponseError
from mnemos.memory.records import Memory
from mnemos.memory.rounds import recall_in_rounds


class TextTurn(Turn):
    """As `Turn`, with a reply by `generator`."""

    generator: Generator

    def run(self, text: str, words: Sequence[int]) -> Iter[Event]:
        """The turn's events. Left early or failing, it keeps the message and marks what came of the reply as
        interrupted.
        """
        started = time.perf_counter()
        recaller = self._working.recaller
        exchange = self._record.begin(text)
        done: Memory | None = None
        try:
            yield self._started(exchange)
            self._catch_up()
            context, self._seen, _ = self._working.route_context(self._past(exchange))
            recall = recall_in_rounds(
                recaller,
                text,
                context,
                words,
                namespace=self._namespace,
                rounds=self._rounds,
                k=self._k,
                exclude=self._not_recalled(exchange),
                where=self._where,
                as_text=True,
            )
            self._memories = recall.memories
            yield Recalled(
                memories=recall.memories,
                route_ms=recall.route_ms,
                page_ms=0.0,
                paged_tokens=0,
                paged_bytes=0,
                mode="text",
            )
            asked = time.perf_counter()
            messages = conversation(self._working.prompts.instructions, recall.memories, self._seen, text)
            finish: Finish | None = None
            first_ms = wait_ms = 0.0
            chars = 0
            for piece in self.generator.generate(messages, self._sampling, self._stop):
                if isinstance(piece, Finish):
                    finish = piece
                    break
                if not piece:
                    continue
                if not first_ms:
                    wait_ms = (time.perf_counter() - asked) * 1e3
                    first_ms = (time.perf_counter() - started) * 1e3
                piece = piece.encode("utf-8", "replace").decode()[: MAX_REPLY_CHARS - chars]
                chars += len(piece)
                self._pieces.append(piece)
                yield TokenDelta(text=piece)
                if chars >= MAX_REPLY_CHARS:
                    finish = Finish("length")
                    break
            if finish is None:
                raise GeneratorResponseError(
                    f"the generator {self.generator.name} ended without saying so; the message is kept"
                )
            reply_text = "".join(self._pieces)
            decoded_ms = (time.perf_counter() - started) * 1e3
            self._memories = cite(recall.memories, text, reply_text)
            is_cut = finish.reason == "interrupted"
            done = self._keep(exchange, reply_text, is_cut=is_cut)
        except BaseException as error:
            if done is None:
                self._leave(exchange, error)
            raise
        count = recaller.model.tokenizer.encode
        usage = Usage(
            prefill_tokens=(
                sum(len(count(each.content)) for each in messages)
                if finish.prompt_tokens is None
                else finish.prompt_tokens
            ),
            paged_tokens=0,
            decoded_tokens=len(count(reply_text)) if finish.reply_tokens is None else finish.reply_tokens,
            route_ms=recall.route_ms,
            page_ms=0.0,
            prefill_ms=wait_ms,
            first_token_ms=first_ms or decoded_ms,
            decode_ms=decoded_ms - (first_ms or decoded_ms),
            store_ms=self._record.store_ms,
        )
        reply = self._reply(done, reply_text, is_cut=is_cut, stop_reason=finish.reason, usage=usage)
        yield reply.model_copy(update={"mode": "text", "generator": self.generator.name})
        yield from self._remember(done)
