"""Whose turn it is on a model: steps of several conversations go together, pieces of prefill in between.

One thing at a time runs on the model. Who is alone runs it in the calling thread and pays for no hand-over.
With company, one worker thread takes turns: a batch of one step of each conversation that is ready, oldest
first, then prefill of other conversations up to a budget of tokens, and so on. So a conversation joins and
leaves at any token, none waits for more than one batch and one budget, and none is passed over.

Each caller has one request under way and waits for it: there are as many as there are threads, and the
agent's `Runtime` bounds those.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

PIECE_TOKENS = 128  # of prefill between two batches; a longer prompt goes in pieces of this size
MAX_BATCH = 64
_IDLE_S = 2.0  # after which the worker thread ends
_PATIENCE = 0.15  # of the last batch's time, to wait for those that were in it and are choosing their token
_LEAST_PATIENCE_S, _MOST_PATIENCE_S = 0.001, 0.03

Row = TypeVar("Row")
Out = TypeVar("Out")
Result = TypeVar("Result")


class _Request:
    """What one thread waits for: a step, or a piece of other work."""

    __slots__ = ("done", "error", "is_taken", "key", "result", "thread", "tokens", "what")

    def __init__(self, key: Hashable, what: Any, tokens: int) -> None:
        self.key = key
        self.thread = threading.get_ident()
        self.what = what
        self.tokens = tokens
        self.is_taken = False  # out of its queue, to be run
        self.done = threading.Event()
        self.result: Any = None
        self.error: Exception | None = None

    def outcome(self) -> Any:
        """What came of it, once it is done."""
        if self.error is not None:
            raise self.error
        return self.result

    def finish(self, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            self.error = outcome
        else:
            self.result = outcome
        self.done.set()


class Scheduler(Generic[Row, Out]):
    """Shares one model among threads. Safe to call from any of them."""

    def __init__(
        self,
        run_batch: Callable[[Sequence[Row]], Sequence[Out | Exception]],
        *,
        max_batch: int = MAX_BATCH,
        piece_tokens: int = PIECE_TOKENS,
    ) -> None:
        """`run_batch(rows)` gives for each row its outcome, or the error that it alone met."""
        self._run_batch = run_batch
        self._max_batch = max_batch
        self.piece_tokens = piece_tokens
        self._mutex = threading.Lock()
        self._wake = threading.Condition(self._mutex)
        self._steps: deque[_Request] = deque()
        self._pieces: deque[_Request] = deque()
        self._runs_in: int | None = None  # the thread whose work runs on the model
        # Who was in the last batch and is likely to be in the next, and the thread that each asked from.
        self._members: dict[Hashable, int] = {}
        self._until = 0.0  # when they are no longer waited for
        self._worker: threading.Thread | None = None
        self.batches = 0  # run so far
        self.steps = 0  # in those batches
        self.largest = 0  # steps in one batch
        self.piece_s = 0.0  # spent on other work

    def step(self, key: Hashable, row: Row) -> Out:
        """One step of the conversation `key`, together with those of others that are ready."""
        request = _Request(key, row, 1)
        if not self._runs_here(request, self._steps):
            outcome: Out = request.outcome()
            return outcome
        started = time.perf_counter()
        try:
            (found,) = self._run_batch([row])
        finally:
            with self._mutex:
                self._stepped({key: threading.get_ident()}, started)
                self._runs_in = None
                self._wake.notify()
        if isinstance(found, Exception):
            raise found
        return found

    def run(self, work: Callable[[], Result], tokens: int) -> Result:
        """Other work on the model, of about as much as prefilling so many tokens."""
        request = _Request(None, work, tokens)
        if not self._runs_here(request, self._pieces):
            result: Result = request.outcome()
            return result
        started = time.perf_counter()
        try:
            return work()
        finally:
            with self._mutex:
                self.piece_s += time.perf_counter() - started
                self._runs_in = None
                self._wake.notify()

    def is_shared(self) -> bool:
        """Whether somebody else is at the model, so that long work should come in pieces."""
        with self._mutex:
            return not self._is_free()

    def company(self) -> int:
        """How many conversations are decoding together, about; 0 or 1 for who is alone."""
        with self._mutex:
            is_over = not self._steps and time.perf_counter() >= self._until
            return 0 if is_over else len(self._members)

    def _is_free(self) -> bool:
        """Whether the model waits for nobody but the conversation of this thread."""
        here = threading.get_ident()
        if self._runs_in not in (None, here) or self._steps or self._pieces:
            return False  # its own mark, in a thread, is what an interrupt left behind
        return all(thread == here for thread in self._members.values()) or time.perf_counter() >= self._until

    def _gone(self, thread: int) -> None:
        """A thread has come to the end of a reply: nobody waits for its next token."""
        for key in [key for key, at in self._members.items() if at == thread]:
            del self._members[key]

    def _runs_here(self, request: _Request, queue: deque[_Request]) -> bool:
        """Whether the model is this thread's now; otherwise the request has been run, or has failed."""
        try:
            with self._mutex:
                if queue is self._pieces:
                    self._gone(request.thread)
                if self._is_free():
                    self._runs_in = request.thread
                    return True
                self._enqueue(queue, request)
            request.done.wait()
        except BaseException:  # an interrupt: nothing of the request may run when the caller goes on
            with self._mutex:
                if request in queue:
                    queue.remove(request)
                if not request.is_taken:
                    request.done.set()
            _wait_to_the_end(request.done)
            raise
        return False

    def _enqueue(self, queue: deque[_Request], request: _Request) -> None:
        queue.append(request)
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(target=self._work, name="mnemos-model", daemon=True)
            self._worker.start()
        self._wake.notify()

    def _work(self) -> None:
        """The worker thread: batches and pieces in turn, until nobody has come for a while."""
        while True:
            with self._mutex:
                if not self._wake.wait_for(self._has_work, timeout=_IDLE_S):
                    self._worker = None
                    return
                self._runs_in = threading.get_ident()
                pieces = self._next_pieces()
            started = time.perf_counter()
            for piece in pieces:
                piece.finish(_outcome_of(piece.what))
            with self._mutex:
                self.piece_s += time.perf_counter() - started
                self._wait_for_members()
                batch = [_taken(self._steps) for _ in range(min(len(self._steps), self._max_batch))]
            self._run_steps(batch)
            with self._mutex:
                self._runs_in = None

    def _has_work(self) -> bool:
        return self._runs_in is None and bool(self._steps or self._pieces)

    def _next_pieces(self) -> list[_Request]:
        """The pieces that fit one budget, at least one where there is any."""
        found: list[_Request] = []
        left = self.piece_tokens
        while self._pieces and (not found or self._pieces[0].tokens <= left):
            found.append(_taken(self._pieces))
            left -= found[-1].tokens
        return found

    def _wait_for_members(self) -> None:
        """A little, until all of the last batch are ready again; they are still choosing their tokens."""
        while self._steps and len(self._steps) < self._max_batch:
            missing = self._members.keys() - {request.key for request in self._steps}
            left = self._until - time.perf_counter()
            if not missing or left <= 0 or self._pieces:
                return
            self._wake.wait(left)

    def _run_steps(self, batch: Sequence[_Request]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        try:
            outcomes: Sequence[Out | Exception] = self._run_batch([request.what for request in batch])
        except Exception as error:  # each gets it: no thread may wait for ever
            outcomes = [error] * len(batch)
        with self._mutex:
            self._stepped({request.key: request.thread for request in batch}, started)
        for request, outcome in zip(batch, outcomes, strict=True):
            request.finish(outcome)

    def _stepped(self, members: dict[Hashable, int], started: float) -> None:
        now = time.perf_counter()
        patience = min(max(_PATIENCE * (now - started), _LEAST_PATIENCE_S), _MOST_PATIENCE_S)
        self._members, self._until = members, now + patience
        self.batches += 1
        self.steps += len(members)
        self.largest = max(self.largest, len(members))


def pieces(tokens: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The tokens in pieces of `size`; the last may have one more, so that none of several has but one."""
    start = 0
    while start < len(tokens):
        end = start + size if start + size + 1 < len(tokens) else len(tokens)
        yield tokens[start:end]
        start = end


def _taken(queue: deque[_Request]) -> _Request:
    request = queue.popleft()
    request.is_taken = True
    return request


def _outcome_of(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return error


def _wait_to_the_end(done: threading.Event) -> None:
    while not done.is_set():
        try:
            done.wait()
        except KeyboardInterrupt:
            continue
