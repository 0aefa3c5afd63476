"""`OpenAIGenerator`: replies by a server that speaks OpenAI's chat completions (vLLM, llama.cpp, Ollama).

Needs the extra `remote` (`pip install 'mnemos[remote]'`). The words of the conversation and of the recalled
memories go to that server, and what it keeps of them is out of the bank's reach.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from mnemos.agent.generators import ChatMessage, Finish
from mnemos.agent.openai_stream import read_reply
from mnemos.agent.stopping import Stop
from mnemos.attention.sampling import Sampling
from mnemos.errors import (
    GeneratorRefusedError,
    GeneratorResponseError,
    GeneratorTimeoutError,
    GeneratorUnreachableError,
    UsageError,
)

if TYPE_CHECKING:
    import httpx2

_POLL_S = 0.05
_HINTS = {
    400: "it takes other settings, or the conversation is too long for the model",
    401: "the key is missing or wrong; give `api_key`",
    403: "the key may not use that model",
    404: "there is no such model, or `base_url` is not the one that ends in /v1",
    429: "it is busy or the account is used up; wait and send the message again",
}


class OpenAIGenerator:
    """Asks `model` of the server at `base_url` (`http://localhost:8000/v1`) and streams its replies.

    `connect_s` is how long to wait for a connection, `silence_s` for the next piece of a reply. `settings`
    goes into every request as it is (`{"reasoning_effort": "low"}`). One generator serves many agents and
    threads. Raises `UsageError` for an address that is none, and when the extra is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        connect_s: float = 10.0,
        silence_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UsageError("base_url must be like http://localhost:8000/v1, without a name or a password")
        try:
            import httpx2
        except ImportError:
            raise UsageError("remote generators need an extra: pip install 'mnemos[remote]'") from None
        self._where = parts.netloc
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model = model
        self._silence_s = silence_s
        self._settings = dict(settings or {})
        sent = {"Accept": "text/event-stream, application/json", **(headers or {})}
        if api_key is not None:
            sent["Authorization"] = f"Bearer {api_key}"
        self._client = httpx2.Client(
            headers=sent, timeout=httpx2.Timeout(silence_s, connect=connect_s), follow_redirects=False
        )

    @property
    def name(self) -> str:
        return f"{self._model} at {self._where}"

    def __repr__(self) -> str:
        return f"OpenAIGenerator({self.name})"  # without the key

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def generate(
        self, messages: Sequence[ChatMessage], sampling: Sampling, stop: Stop
    ) -> Iterator[str | Finish]:
        """As `Generator.generate`. A server that says nothing for `silence_s` is given up."""
        body = self._body(messages, sampling)
        came: Queue[str | Finish | Exception] = Queue(maxsize=256)
        is_over = Event()
        Thread(target=self._read, args=(body, came, is_over), name="mnemos-remote", daemon=True).start()
        heard = time.monotonic()
        try:
            while not stop.is_set():
                try:
                    item = came.get(timeout=_POLL_S)
                except Empty:
                    if time.monotonic() - heard > self._silence_s:
                        raise self._silent() from None
                    continue
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Finish):
                    return
                heard = time.monotonic()
            yield Finish("interrupted")
        finally:
            is_over.set()  # the reading thread lets go of the connection at the next byte or at its timeout

    def _read(self, body: Mapping[str, Any], came: "Queue[str | Finish | Exception]", is_over: Event) -> None:
        """Puts what the server says into the queue, until it is over. Runs in a thread of its own, so that a
        silent server can't hold a turn that was stopped.
        """
        try:
            for item in self._pieces(body):
                if not _put(came, item, is_over):
                    return
        except Exception as error:
            _put(came, error, is_over)

    def _pieces(self, body: Mapping[str, Any]) -> Iterator[str | Finish]:
        import httpx2

        try:
            with self._client.stream("POST", self._url, json=body) as response:
                if response.status_code != 200:
                    raise self._refused(response)
                yield from read_reply(
                    response.headers.get("content-type", ""), response.iter_bytes(), self._where
                )
        except httpx2.TimeoutException as error:
            if isinstance(error, httpx2.ConnectTimeout):
                raise GeneratorUnreachableError(
                    f"{self._where} can't be reached in time; the message is kept. See that the server runs"
                ) from None
            raise self._silent() from None
        except httpx2.DecodingError:
            raise GeneratorResponseError(
                f"what {self._where} sent is compressed in a way that can't be read; the message is kept"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, RuntimeError) as error:
            raise GeneratorUnreachableError(
                f"the connection to {self._where} failed ({type(error).__name__}); the message is kept. See "
                "that the server runs, and send it again"
            ) from None

    def _body(self, messages: Sequence[ChatMessage], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": each.role, "content": each.content} for each in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
        }
        if sampling.top_p < 1.0:
            body["top_p"] = sampling.top_p
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return json.loads(json.dumps(body | self._settings))  # type: ignore[no-any-return]

    def _refused(self, response: "httpx2.Response") -> GeneratorRefusedError:
        """By its number alone: an error page may repeat the words that were sent."""
        status = response.status_code
        hint = _HINTS.get(
            status, "the server's own log says why" if status >= 500 else "see the server's log"
        )
        return GeneratorRefusedError(
            f"{self._where} answered with HTTP {status}: {hint}. The message is kept", status
        )

    def _silent(self) -> GeneratorTimeoutError:
        return GeneratorTimeoutError(
            f"{self._where} said nothing for {self._silence_s:g} s; the message is kept. Send it again, or "
            "give the generator a longer `silence_s`"
        )


def _put(came: "Queue[str | Finish | Exception]", item: "str | Finish | Exception", is_over: Event) -> bool:
    """Whether somebody still reads."""
    while not is_over.is_set():
        try:
            came.put(item, timeout=_POLL_S)
        except Full:
            continue
        return True
    return False
