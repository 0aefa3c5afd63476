"""An answer of an MSA checkpoint: it names documents, gets their text, names more, then answers.

That is the memory interleave of arXiv 2603.23516, section 3.5.

What the model reads, as it was trained (published inference code of EverMind-AI/MSA; `|` marks what routes):

    document   <|im_start|>[n]. text[n]<|im_end|>                         alone, positions from 0
    template   <|im_start|>user\\n                                         positions 0 .. 2
    question   |instruction, question, request|<|im_end|>\\n<|im_start|>   positions from 3 + top_k
    round      [n]...<|object_ref_end|>                                   the model's
               |[n]. text\\n ...|<|object_ref_end|>                        appended; all is prefilled again
    end        <End-of-Retrieve>                                          the model's
    answer     <|im_start|>The user's question is: ...\\n<|object_ref_end|>
                                                                          appended, then the model's

A later round routes by the question and the texts appended last, and may write names alone. Ours, because the
published loop can go on for ever: retrieval also ends after `max_rounds`, and when a round names nothing new.
"""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from mnemos.attention.decoder import Decoder
from mnemos.attention.generate import Generation, StopReason, generate
from mnemos.attention.kv import SpanKV
from mnemos.attention.pooled import new_pooled_cache
from mnemos.attention.pooled_cache import Choices, PooledCache, PooledKeys
from mnemos.attention.sampling import Sampling
from mnemos.attention.tokenizer import Tokenizer
from mnemos.errors import ContextOverflowError, InvalidTokenizerError

START, END, REFERENCE_END = "<|im_start|>", "<|im_end|>", "<|object_ref_end|>"
END_OF_RETRIEVE = "<End-of-Retrieve>"
INSTRUCTION = "\nPlease answer the question based on the above historical document information\n\n"
REQUEST = "\nPlease return all documents related to the question\n"
ANSWER_HEAD = "The user's question is: "
MAX_ROUNDS = 4
_ROUND_TOKENS = 256  # most tokens that one round may name documents with
_NAME = re.compile(r"\[(\d+)\]")
_NAMES_SO_FAR = re.compile(r"\s*(\[\d+\]\s*)*(\[\d*)?")


@dataclass(frozen=True, slots=True)
class Routed:
    """A prefill chose documents, layer by layer."""

    round: int  # from 1
    choices: Choices
    prefill_tokens: int


@dataclass(frozen=True, slots=True)
class Named:
    """The model named documents."""

    round: int
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Appended:
    """Original texts were put behind what it wrote."""

    round: int
    numbers: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Answering:
    """The answer begins. Read `generation` for its tokens as they come; what is left is read afterwards."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer is complete."""

    tokens: tuple[int, ...]
    stop_reason: StopReason
    rounds: int


Step = Routed | Named | Appended | Answering | Answered


class MsaTokens:
    """Token ids of the parts that an MSA checkpoint was trained on.

    Words of people are never control tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises InvalidTokenizerError when the tokenizer lacks one of the control tokens."""
        self._tokenizer = tokenizer
        self.start, self.end, self.reference_end = (
            _control_id(tokenizer, name) for name in (START, END, REFERENCE_END)
        )
        self.template = [self.start, *tokenizer.encode("user\n")]

    def document(self, number: int, text: str) -> list[int]:
        """A document by the number that the model names it by."""
        return [self.start, *self._tokenizer.encode(f"[{number}]. {text}[{number}]"), self.end]

    def question(self, text: str) -> list[int]:
        """The tokens of a question that route."""
        return self._tokenizer.encode(f"{INSTRUCTION}{text}{REQUEST}")

    def question_end(self) -> list[int]:
        """What stands between the question and what the model writes."""
        return [self.end, *self._tokenizer.encode("\n"), self.start]

    def texts(self, texts: Mapping[int, str]) -> list[int]:
        """Original texts in the order of their numbers, without the token that ends them."""
        return self._tokenizer.encode("".join(f"[{number}]. {texts[number]}\n" for number in sorted(texts)))

    def answer_head(self, text: str) -> list[int]:
        return [self.start, *self._tokenizer.encode(f"{ANSWER_HEAD}{text}\n"), self.reference_end]

    def end_of_retrieve(self) -> list[int]:
        return self._tokenizer.encode(END_OF_RETRIEVE, special=True)


def _control_id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.id_of(name)
    if found is None:
        raise InvalidTokenizerError(f"the tokenizer has no {name}, which an MSA checkpoint is read with")
    return found


class Interleave:
    """One question to an MSA model over a set of pooled documents."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        template: SpanKV,
        documents: PooledKeys,
        texts_of: Callable[[Sequence[int]], Mapping[int, str]],
        *,
        sampling: Sampling,
        max_rounds: int = MAX_ROUNDS,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """`texts_of(numbers)` gives the original texts of those numbers that name a document."""
        self._decoder, self._tokenizer = decoder, tokenizer
        self._words = MsaTokens(tokenizer)
        self._template, self._documents = template, documents
        self._texts_of = texts_of
        self._sampling, self._max_rounds = sampling, max_rounds
        self._should_stop = should_stop
        self._cache: PooledCache | None = None

    def run(self, text: str, past: Sequence[int] = ()) -> Generator[Step]:
        """The steps towards the answer to `text`. `past` is tokens that are read before the question.

        Raises ContextOverflowError when question and texts don't fit the model's window.
        """
        words = self._words.question(text)
        transcript = [*past, *words, *self._words.question_end()]
        question = range(len(past), len(past) + len(words))
        appended = range(0)
        known: set[int] = set()
        number = 0
        try:
            while True:
                number += 1
                generation = self._prefill(transcript, [*question, *appended])
                cache = self._cache
                assert cache is not None, "made by the prefill"
                yield Routed(number, cache.choices, len(transcript))
                wrote, ended = self._names(generation, only_names=number > 1)
                if generation.stop_reason in (StopReason.INTERRUPTED, StopReason.WINDOW):
                    yield Answered((), generation.stop_reason, number)
                    return
                numbers = tuple(dict.fromkeys(int(n) for n in _NAME.findall(self._tokenizer.decode(wrote))))
                if numbers:
                    yield Named(number, numbers)
                fresh = self._texts_of([n for n in numbers if n not in known])
                if ended or not fresh or number >= self._max_rounds:
                    break
                known |= set(fresh)
                texts = self._words.texts(fresh)
                start = len(transcript) + len(wrote)
                transcript += [*wrote, *texts, self._words.reference_end]
                appended = range(start, start + len(texts))
                yield Appended(number, tuple(sorted(fresh)), len(texts))
            yield from self._answer(text, generation, number, told=END_OF_RETRIEVE in self._text(wrote))
        finally:
            if self._cache is not None:
                self._cache.zero_()

    def _prefill(self, transcript: Sequence[int], question: Sequence[int]) -> Generation:
        """A fresh cache with the transcript read and documents chosen by its rows `question`."""
        if self._cache is not None:
            self._cache.zero_()
        # What names documents, what closes the retrieval (the question once more), and the answer.
        room = _ROUND_TOKENS + len(transcript) + self._sampling.max_tokens
        room = min(room, self._decoder.config.max_positions)
        self._cache = new_pooled_cache(self._decoder, len(transcript) + room, self._template, self._documents)
        self._cache.choose_at_prefill(question)
        logits = self._decoder.forward(transcript, self._cache)
        greedy = Sampling(temperature=0.0, max_tokens=_ROUND_TOKENS)
        return generate(
            self._decoder,
            self._cache,
            logits,
            greedy,
            eos_ids=self._tokenizer.eos_ids,
            should_stop=self._should_stop,
        )

    def _names(self, generation: Generation, *, only_names: bool) -> tuple[list[int], bool]:
        """What the model wrote in one round, and whether retrieval ends with it.

        In the first round it may say a few words before it names documents.
        """
        for token in generation:
            if token == self._words.reference_end:
                return generation.tokens, False
            text = self._text(generation.tokens)
            if END_OF_RETRIEVE in text:
                return generation.tokens, True
            rest = _NAMES_SO_FAR.sub("", text, count=1)
            if only_names and not END_OF_RETRIEVE.startswith(rest.strip()):
                return generation.tokens, True
        return generation.tokens, True

    def _answer(self, text: str, generation: Generation, rounds: int, *, told: bool) -> Generator[Step]:
        """Closes the retrieval in the cache that is there, and decodes the answer."""
        cache = self._cache
        assert cache is not None, "made by the prefill"
        closing = [*generation.pending, *([] if told else self._words.end_of_retrieve())]
        closing += self._words.answer_head(text)
        try:
            logits = self._decoder.forward(closing, cache)
        except ContextOverflowError:
            yield Answered((), StopReason.WINDOW, rounds)
            return
        answer = generate(
            self._decoder,
            cache,
            logits,
            self._sampling,
            eos_ids=self._tokenizer.eos_ids,
            should_stop=self._should_stop,
        )
        yield Answering(answer)
        for _ in answer:
            pass
        assert answer.stop_reason is not None, "an exhausted generation says why it ended"
        yield Answered(tuple(answer.tokens), answer.stop_reason, rounds)

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, special=True)
