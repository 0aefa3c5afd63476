"""Conversations as ChatGPT, Claude and plain chat logs write them: docs/formats/importers.md."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from mnemos.errors import InvalidTextError
from mnemos.memory.importing_conversation import Conversation, Format, Message, moment, words_of

Role = Literal["user", "assistant"]
_ROLES: dict[str, Role] = {"user": "user", "human": "user", "assistant": "assistant", "model": "assistant"}


def read_chatgpt(record: Mapping[str, Any]) -> Conversation:
    """From the current node up to the root: other branches are answers that the user had done anew."""
    mapping = record.get("mapping")
    if not isinstance(mapping, dict):
        raise InvalidTextError("it has no `mapping` of messages")
    messages: list[Message] = []
    skipped = 0
    for node in _branch(mapping, record.get("current_node")):
        message = node.get("message")
        if not isinstance(message, dict):
            continue  # the root
        author = message.get("author")
        role = _ROLES.get(author.get("role", "")) if isinstance(author, dict) else None
        metadata = message.get("metadata")
        is_hidden = isinstance(metadata, dict) and bool(metadata.get("is_visually_hidden_from_conversation"))
        text = "" if is_hidden or role is None else _chatgpt_words(message)
        if role is None or not text:
            skipped += 1
        else:
            messages.append(Message(role, text, moment(message.get("create_time"))))
    return Conversation(
        id=_id(record, "conversation_id", "id"),
        title=_title(record.get("title")),
        created_at=moment(record.get("create_time")),
        updated_at=moment(record.get("update_time")),
        messages=messages,
        skipped=skipped,
    )


def _branch(mapping: Mapping[str, Any], current: Any) -> list[Mapping[str, Any]]:
    """The nodes from the root to the current one; to the deepest last child where none is named."""
    if not isinstance(current, str) or current not in mapping:
        current = _last_leaf(mapping)
    path: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    while isinstance(current, str) and current in mapping:
        node = mapping[current]
        if current in seen or not isinstance(node, dict):
            raise InvalidTextError("its messages go round in a circle, or are none")
        seen.add(current)
        path.append(node)
        current = node.get("parent")
    return path[::-1]


def _last_leaf(mapping: Mapping[str, Any]) -> str | None:
    roots = [key for key, node in mapping.items() if isinstance(node, dict) and not node.get("parent")]
    at = roots[0] if roots else None
    for _ in range(len(mapping)):
        if at is None:
            break
        children = mapping[at].get("children") if at in mapping and isinstance(mapping[at], dict) else None
        known = [one for one in children if one in mapping] if isinstance(children, list) else []
        if not known:
            break
        at = known[-1]
    return at


def _chatgpt_words(message: Mapping[str, Any]) -> str:
    """The text parts; pictures and files have no words. Code and thoughts are the assistant's tools."""
    content = message.get("content")
    if not isinstance(content, dict) or content.get("content_type") not in ("text", "multimodal_text"):
        return ""
    if message.get("recipient", "all") not in ("all", None):
        return ""  # said to a tool
    parts = content.get("parts")
    if not isinstance(parts, list):
        raise InvalidTextError("a message has no parts")
    return "\n\n".join(words for part in parts if isinstance(part, str) and (words := words_of(part)))


def read_claude(record: Mapping[str, Any]) -> Conversation:
    """The messages in their order; where they name parents, the branch that ends with the last one."""
    listed = record.get("chat_messages")
    if not isinstance(listed, list):
        raise InvalidTextError("it has no `chat_messages`")
    if not all(isinstance(message, dict) for message in listed):
        raise InvalidTextError("a message is no object")
    messages: list[Message] = []
    skipped = 0
    for message in _claude_branch(listed):
        role = _ROLES.get(message.get("sender", ""))
        text = "" if role is None else _claude_words(message)
        if role is None or not text:
            skipped += 1
        else:
            messages.append(Message(role, text, moment(message.get("created_at"))))
    return Conversation(
        id=_id(record, "uuid"),
        title=_title(record.get("name")),
        created_at=moment(record.get("created_at")),
        updated_at=moment(record.get("updated_at")),
        messages=messages,
        skipped=skipped,
    )


def _claude_branch(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = {one["uuid"]: one for one in listed if isinstance(one.get("uuid"), str)}
    if not any(one.get("parent_message_uuid") in known for one in listed if _is_name(one)):
        return listed
    path: list[dict[str, Any]] = []
    at: dict[str, Any] | None = listed[-1]
    while at is not None:
        path.append(at)
        if len(path) > len(listed):
            raise InvalidTextError("its messages go round in a circle")
        parent = at.get("parent_message_uuid")
        at = known.get(parent) if isinstance(parent, str) else None
    return path[::-1]


def _is_name(message: Mapping[str, Any]) -> bool:
    return isinstance(message.get("parent_message_uuid"), str)


def _claude_words(message: Mapping[str, Any]) -> str:
    """The text parts of `content`, else `text`; tool calls, their results and thoughts are passed over."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [
            words
            for part in content
            if isinstance(part, dict) and part.get("type") == "text" and (words := words_of(part.get("text")))
        ]
        if parts:
            return "\n\n".join(parts)
    return words_of(message.get("text") or "")


def read_jsonl(record: Mapping[str, Any]) -> Conversation:
    """One line with `messages`; messages on lines of their own come joined by `importing`."""
    listed = record.get("messages")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InvalidTextError("it has neither `messages` nor `role` and `content`")
    messages: list[Message] = []
    skipped = 0
    for one in listed:
        name = one.get("role")
        if not isinstance(name, str):
            raise InvalidTextError("a message has no `role`")
        role = _ROLES.get(name)
        text = "" if role is None else _plain_words(one.get("content"))
        if role is None or not text:
            skipped += 1
        else:
            messages.append(Message(role, text, moment(one.get("created_at"))))
    session = record.get("session") or record.get("id")
    return Conversation(
        id=session if isinstance(session, str) and session else _digest(messages[:1]),
        title=_title(record.get("title") or record.get("session")),
        created_at=moment(record.get("created_at")),
        updated_at=None,
        messages=messages,
        skipped=skipped,
    )


def _plain_words(content: Any) -> str:
    if isinstance(content, list):
        texts = [
            part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"
        ]
        return "\n\n".join(words for text in texts if (words := words_of(text)))
    return words_of("" if content is None else content)


READERS: dict[Format, Callable[[Mapping[str, Any]], Conversation]] = {
    "chatgpt": read_chatgpt,
    "claude": read_claude,
    "jsonl": read_jsonl,
}


def format_of(record: Mapping[str, Any]) -> Format | None:
    """Whose conversation this is."""
    if "mapping" in record:
        return "chatgpt"
    if "chat_messages" in record:
        return "claude"
    return "jsonl" if "messages" in record or {"role", "content"} <= record.keys() else None


def _title(value: Any) -> str | None:
    return " ".join(words_of(value).split()) or None if isinstance(value, str) else None


def _id(record: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value:
            return value
    raise InvalidTextError(f"it has no `{names[0]}`")


def _digest(messages: list[Message]) -> str:
    """Of the first message alone: a log that has grown is still the same conversation."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(repr((message.role, message.text, message.at)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
