"""An HTTP application with a memory for each of its users.

    python examples/embed_in_fastapi.py [BANK]            shows two users and their isolation, without a port
    python examples/embed_in_fastapi.py BANK --serve      serves on 127.0.0.1:8000

It needs `pip install --group examples` (fastapi, uvicorn, httpx2). Users come from MNEMOS_EXAMPLE_USERS, a
JSON object of tokens and user names; without it, new tokens are made and printed. The token decides the
namespace: nothing in a request can name another one.

    POST /chat {"text": ...}    the turn's events as server-sent events
    GET /memories               the user's memories
    DELETE /memories/{id}       erases one; the signed receipt
"""

import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from tempfile import mkdtemp
from typing import Annotated, Any

from mnemos import Agent, MemoryBank, MnemosError
from mnemos.attention.sampling import Sampling
from mnemos.errors import AmbiguousIdError, InvalidTextError, NotFoundError, UsageError

try:
    from fastapi import Depends, FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse, StreamingResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
except ModuleNotFoundError:
    raise SystemExit("this example needs FastAPI: pip install --group examples") from None
from pydantic import BaseModel, Field

BRIEF = Sampling(max_tokens=40, repetition_penalty=1.1)
NOT_FOUND = (NotFoundError, AmbiguousIdError, UsageError)


class Message(BaseModel):
    text: str = Field(min_length=1, max_length=8_000)


def create_app(bank_path: str, users: Mapping[str, str]) -> FastAPI:
    """`users` maps a token to the name of its user."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with MemoryBank.open(bank_path) as bank:
            app.state.bank, app.state.agents = bank, {}
            yield

    app = FastAPI(title="Mnemos in FastAPI", lifespan=lifespan)
    bearer = HTTPBearer(auto_error=False)

    def namespace_of(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
        sent = given.credentials.encode() if given else b""
        for token, user in users.items():
            if secrets.compare_digest(token.encode(), sent):
                return f"users/{user}"
        raise HTTPException(401, "unknown token", {"WWW-Authenticate": "Bearer"})

    Namespace = Annotated[str, Depends(namespace_of)]

    @app.exception_handler(MnemosError)
    async def failed(request: Request, error: MnemosError) -> JSONResponse:
        status = 404 if isinstance(error, NOT_FOUND) else 400 if isinstance(error, InvalidTextError) else 503
        return JSONResponse({"detail": str(error)}, status)

    @app.post("/chat")
    async def chat(message: Message, namespace: Namespace, request: Request) -> StreamingResponse:
        state = request.app.state
        if namespace not in state.agents:  # one conversation a user; its turns wait for one another
            state.agents[namespace] = Agent(state.bank, namespace=namespace, sampling=BRIEF)

        async def events() -> AsyncIterator[str]:
            try:  # a client that goes away cancels the turn
                async with aclosing(state.agents[namespace].stream(message.text, timeout_s=120)) as turn:
                    async for event in turn:
                        yield f"event: {event.type}\ndata: {event.model_dump_json()}\n\n"
            except MnemosError as error:
                yield f"event: error\ndata: {json.dumps({'detail': str(error)})}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/memories")
    def memories(namespace: Namespace, request: Request, limit: int = 100) -> list[dict[str, Any]]:
        found = request.app.state.bank.list(namespace, limit=min(max(limit, 1), 1000))
        return [memory.model_dump(mode="json", exclude={"namespace"}) for memory in found]

    @app.delete("/memories/{memory_id}")
    def forget(memory_id: str, namespace: Namespace, request: Request) -> dict[str, Any]:
        bank: MemoryBank = request.app.state.bank
        return dict(bank.forget(bank.plan_forget(namespace=namespace, ids=[memory_id])).document)

    return app


def show(app: FastAPI, tokens: Mapping[str, str]) -> None:
    """Two users, through HTTP requests in this process."""
    from fastapi.testclient import TestClient

    ann, ben = ({"Authorization": f"Bearer {token}"} for token in tokens)
    with TestClient(app) as client:
        client.post("/chat", json={"text": "My locker code is 4417."}, headers=ann)
    with TestClient(app) as client:  # the server was started anew
        for name, user in (("ann", ann), ("ben", ben)):
            print(f"{name} asks for the locker code")
            reply = client.post("/chat", json={"text": "What is my locker code?"}, headers=user)
            for line in reply.text.splitlines():
                if line.startswith("data:") and '"type":"recalled"' in line:
                    print(
                        "  recalled:", [each["memory"]["text"] for each in json.loads(line[5:])["memories"]]
                    )
        told = client.get("/memories", headers=ann).json()[-1]
        print("ben deletes ann's memory:", client.delete(f"/memories/{told['id']}", headers=ben).status_code)
        receipt = client.delete(f"/memories/{told['id']}", headers=ann)
        print("ann deletes it:", receipt.status_code, "receipt", receipt.json()["id"])
        print("without a token:", client.get("/memories").status_code)


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else mkdtemp(prefix="mnemos-")
    named = json.loads(os.environ.get("MNEMOS_EXAMPLE_USERS", "{}"))
    if "--serve" not in sys.argv:
        made = {secrets.token_urlsafe(24): user for user in ("ann", "ben")}
        show(create_app(path, made), made)
    else:
        import uvicorn

        for_users = named or {secrets.token_urlsafe(24): user for user in ("ann", "ben")}
        for token, user in {} if named else for_users.items():
            print(f"{user}: {token}", file=sys.stderr)
        uvicorn.run(create_app(path, for_users), host="127.0.0.1", port=8000)
