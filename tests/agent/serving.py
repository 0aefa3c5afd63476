"""A chat completions server on this machine, which does as a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@dataclass
class Server:
    """What it was asked, and how it answers the next time."""

    url: str
    answer: Answer
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.asked.append({"path": self.path, **body})
            server.headers.append(dict(self.headers.items()))
            with suppress(BrokenPipeError, ConnectionResetError):  # the test's client has left
                server.answer(self, body)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_port}/v1", answer)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def send(handler: BaseHTTPRequestHandler, body: bytes, content_type: str, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def start_events(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.end_headers()


def send_event(handler: BaseHTTPRequestHandler, value: object) -> None:
    data = value if isinstance(value, str) else json.dumps(value)
    handler.wfile.write(f"data: {data}\n\n".encode())
    handler.wfile.flush()


def piece(text: str | None = None, reason: str | None = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def says(
    *texts: str, reason: str = "stop", usage: dict[str, int] | None = None, pause_s: float = 0.0
) -> Answer:
    """Streams the texts as a well-behaved server does."""

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        start_events(handler)
        send_event(
            handler, {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
        )
        for text in texts:
            send_event(handler, piece(text))
            time.sleep(pause_s)
        send_event(handler, piece(reason=reason))
        if usage is not None:
            send_event(handler, {"choices": [], "usage": usage})
        send_event(handler, "[DONE]")

    return answer
