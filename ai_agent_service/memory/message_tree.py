"""Gives each message of a conversation its address: a digest of what it says and of all that was
said before it."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator

import msgspec

from ai_agent_service.core.messages import (
    AudioPart,
    Content,
    FilePart,
    ImagePart,
    Message,
    TextPart,
    ToolResult,
)
from ai_agent_service.memory.base import Step
from ai_agent_service.storage.tables import HASH_BYTES

_QUESTION, _ANSWER = b"u", b"a"
_ASCII_SPACE = bytes(code for code in range(128) if chr(code).isspace())


class Entry(msgspec.Struct, frozen=True):
    """A user's message, or an answer: all assistant and tool messages between two of the user's."""

    messages: tuple[Message, ...]
    path: bytes
    parent: bytes
    depth: int

    @property
    def is_question(self) -> bool:
        """Whether it is the user's."""
        return self.messages[0].role == "user"

    @property
    def content(self) -> Content:
        """What it says: the user's content as it came, or the answer's text."""
        return self.messages[0].content if self.is_question else join_answer_text(self.messages)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of an answer whose tool calls the client brings itself."""
        return split_steps(self.messages)[0]

    @property
    def last(self) -> str:
        """What an answer says after its steps."""
        return split_steps(self.messages)[1]


class MessageHasher:
    """Computes addresses with the secret key of one database, so that equal texts of several users
    do not show."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def hash_session(self, tenant: str, user: str, agent_id: str, session_id: str) -> bytes:
        """The address of a session, which its first message has as parent."""
        return self._hash(msgspec.json.encode((tenant, user, agent_id, session_id)))

    def hash_question(self, parent: bytes, content: Content) -> bytes:
        """The address of a user's message."""
        return self._hash(parent + _QUESTION + _normalize_content(content))

    def hash_answer(self, parent: bytes, text: str) -> bytes:
        """The address of an answer. White space does not count: clients join the texts of several
        steps in their own ways."""
        return self._hash(parent + _ANSWER + _remove_whitespace(text))

    def hash_settings(self, *values: object) -> bytes:
        """A digest of settings."""
        return self._hash(msgspec.json.encode(values))

    def build_entries(
        self, messages: Iterable[Message], parent: bytes, depth: int = 0
    ) -> list[Entry]:
        """`messages` as entries that follow on `parent`, which is the `depth`-th; system messages
        are left out."""
        found: list[Entry] = []
        for group in _group_messages(messages):
            depth += 1
            first = group[0]
            path = (
                self.hash_question(parent, first.content)
                if first.role == "user"
                else self.hash_answer(parent, join_answer_text(group))
            )
            found.append(Entry(group, path, parent, depth))
            parent = path
        return found

    def _hash(self, value: bytes) -> bytes:
        return hashlib.blake2b(value, key=self._key, digest_size=HASH_BYTES).digest()


def _group_messages(messages: Iterable[Message]) -> Iterator[tuple[Message, ...]]:
    """Each user's message alone, all others between two of them together."""
    answer: list[Message] = []
    for message in messages:
        if message.role == "user":
            if answer:
                yield tuple(answer)
                answer.clear()
            yield (message,)
        elif message.role != "system":
            answer.append(message)
    if answer:
        yield tuple(answer)


def join_answer_text(messages: Iterable[Message]) -> str:
    """What the assistant says in `messages`, joined as it was streamed."""
    return "".join([message.text for message in messages if message.role == "assistant"])


def split_steps(messages: tuple[Message, ...]) -> tuple[tuple[Step, ...], str]:
    """The steps with tool calls in an answer's `messages`, and what is said after them."""
    found: list[Step] = []
    said = ""
    for position, message in enumerate(messages):
        if message.role != "assistant":
            continue
        said += message.text
        if not message.tool_calls:
            continue
        names = {call.id: call.name for call in message.tool_calls}
        results = tuple(
            ToolResult(
                call_id=result.tool_call_id or "",
                name=names[result.tool_call_id or ""],
                content=result.text,
                images=result.images,
            )
            for result in messages[position + 1 :]
            if result.role == "tool" and result.tool_call_id in names
        )
        found.append(Step(said, message.tool_calls, results))
        said = ""
    return tuple(found), said


def _normalize_content(content: Content) -> bytes:
    """The bytes that stand for `content`: its text with white space folded, each other part by its
    digest."""
    if isinstance(content, str):
        return _fold_whitespace(content)
    pieces = [
        _fold_whitespace("\n".join(part.text for part in content if isinstance(part, TextPart)))
    ]
    for part in content:
        match part:
            case TextPart():
                continue
            case ImagePart(url=url):
                pieces.append(b"i" + _hash_content(url))
            case AudioPart(data=data):
                pieces.append(b"s" + _hash_content(data))
            case FilePart():
                pieces.append(b"f" + _hash_content(part.file_id or "", part.file_data or ""))
    return b"\x00".join(pieces)


def _fold_whitespace(text: str) -> bytes:
    return " ".join(_normalize_nfc(text).split()).encode()


def _remove_whitespace(text: str) -> bytes:
    if text.isascii():
        return text.encode().translate(None, _ASCII_SPACE)
    return "".join(_normalize_nfc(text).split()).encode()


def _normalize_nfc(text: str) -> str:
    """`text` in the form that composes letters and their marks (NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _hash_content(*values: str) -> bytes:
    return hashlib.blake2b("\x00".join(values).encode(), digest_size=HASH_BYTES).digest()
