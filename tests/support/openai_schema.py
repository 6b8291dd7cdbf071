"""Checks the service's answers against OpenAI's own schema."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ADDRESS = "urn:openai"
_EXPECTED = {
    "/v1/chat/completions": "CreateChatCompletionResponse",
    "/v1/models": "ListModelsResponse",
}


def validate(name: str, value: object) -> None:
    """Raise jsonschema's ValidationError unless `value` is OpenAI's `name`, such as
    `CreateChatCompletionResponse`."""
    _validator(name).validate(value)


def split_events(body: str) -> list[str]:
    """Return the data of the server-sent events in `body`, each of which must be one line; skip
    comments."""
    *events, rest = body.split("\n\n")
    assert not rest, "the stream ends within an event"
    data = [event for event in events if not event.startswith(":")]
    assert all(event.startswith("data: ") and "\n" not in event for event in data), data
    return [event.removeprefix("data: ") for event in data]


def checked_stream(body: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the chunks of a streamed chat completion and the error that ended it, if any; all must
    be valid.

    Assert what holds for every stream: one id, one model, the role in the first chunk only, one
    finish reason or one error at the end, and `[DONE]` as the last event.
    """
    *events, last = split_events(body)
    assert last == "[DONE]"
    chunks = [json.loads(event) for event in events]
    error: dict[str, Any] | None = None
    if chunks and "error" in chunks[-1]:
        validate("ErrorResponse", chunks[-1])
        error = chunks.pop()["error"]
    for chunk in chunks:
        validate("CreateChatCompletionStreamResponse", chunk)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) <= 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["delta"].get("role") for choice in choices] == [
        "assistant",
        *[None] * (len(choices) - 1),
    ][: len(choices)]
    reasons = [choice["finish_reason"] for choice in choices]
    assert all(reason is None for reason in reasons[:-1])
    assert (reasons[-1:] in ([], [None])) == (error is not None), (
        "a stream ends with a finish reason or with an error"
    )
    return chunks, error


class Recorded:
    """Wrapper of `app` that keeps every complete answer of its OpenAI routes for `check`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.answers: list[tuple[str, int, bytes]] = []
        """Path, status and body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        pieces: list[bytes] = []
        status = 0

        async def kept(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                pieces.append(message.get("body", b""))
                if not message.get("more_body", False):
                    self.answers.append((scope["path"], status, b"".join(pieces)))
            await send(message)

        await self.app(scope, receive, kept)

    def check(self) -> None:
        """Validate all answers; there must be at least one."""
        assert self.answers
        for path, status, body in self.answers:
            text = body.decode()
            if status != 200:
                validate("ErrorResponse", json.loads(text))
            elif text.startswith("data: "):
                checked_stream(text)
            else:
                validate(_EXPECTED.get(path, "Model"), json.loads(text))


@cache
def _validator(name: str) -> Draft202012Validator:
    return build_validator(_load_document(), _ADDRESS, ("components", "schemas", name))


@cache
def _load_document() -> dict[str, Any]:
    path = Path(__file__).parent / "openai.schema.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def load_schemas() -> dict[str, dict[str, Any]]:
    """Return OpenAI's schemas by their names."""
    schemas: dict[str, dict[str, Any]] = _load_document()["components"]["schemas"]
    return schemas


def build_validator(
    document: dict[str, Any], address: str, path: Sequence[str]
) -> Draft202012Validator:
    """Build a validator for the schema at `path` of `document`, whose references stay within it."""
    resource: Resource[Any] = Resource.from_contents(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}
    )
    registry: Registry[Any] = Registry().with_resource(address, resource)
    pointer = "/".join(path)
    assert registry.resolver().lookup(f"{address}#/{pointer}").contents
    return Draft202012Validator({"$ref": f"{address}#/{pointer}"}, registry=registry)
