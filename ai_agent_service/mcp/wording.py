"""Describe a server on one short line without its secrets."""

from collections.abc import Iterable, Mapping
from functools import partial
from http import HTTPStatus

import msgspec

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.messages import Link
from ai_agent_service.core.redaction import (
    MIN_SECRET_LENGTH,
    find_secrets,
    redact_known,
    redact_secrets,
)
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.tools.base import ToolOutput

MAX_MESSAGE_LENGTH = 400


def sanitize_message(
    text: str, definition: ServerDefinition, limit: int = MAX_MESSAGE_LENGTH
) -> str:
    """Return `text` on one line, cut to `limit` characters, without the values of the server's
    variables."""
    return replace_unstorable(" ".join(redact_secrets(text, definition.secrets).split()))[:limit]


def redact_credentials(text: str, definition: ServerDefinition) -> str:
    """Return `text` without the server's credentials. Other variables stay, such as a path that the
    model can use."""
    return redact_known(text, definition.credentials)


def redact_output(output: ToolOutput, definition: ServerDefinition) -> ToolOutput:
    """Return `output` without credentials in its text and its links."""
    redact = partial(redact_credentials, definition=definition)
    links = tuple(
        Link(redact(link.url), redact(link.title), redact(link.text), link.media_type)
        for link in output.links
    )
    return msgspec.structs.replace(output, content=redact(output.content), links=links)


def add_known_secrets(
    definition: ServerDefinition,
    environment: Mapping[str, str],
    others: Iterable[ServerDefinition],
) -> ServerDefinition:
    """Return `definition` with the secrets of `environment` and the credentials of `others` among
    those to be redacted: a command may find them, as it has the rights of its user."""
    found = {
        *find_secrets(environment),
        *(
            secret
            for other in others
            for secret in other.credentials
            if len(secret) >= MIN_SECRET_LENGTH
        ),
    }

    def merge(own: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({*own, *found}, key=len, reverse=True))

    update = {
        "secrets": merge(definition.secrets),
        "credentials": merge(definition.credentials),
    }
    return definition.model_copy(update=update)


def describe_status(status: int) -> str:
    """Return the number and the name of an HTTP error status, and what to check."""
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    hint = "; check the header and the variables in its definition" if status in (401, 403) else ""
    hint = "; look at the path of its address" if status in (404, 405) else hint
    return f"HTTP {status}{phrase}{hint}"
