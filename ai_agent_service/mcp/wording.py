"""Describe a server on one short line without its secrets."""

from http import HTTPStatus

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.redaction import redact_secrets
from ai_agent_service.core.text import replace_unstorable

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
    for secret in definition.credentials:
        text = text.replace(secret, "[redacted]")
    return text


def describe_status(status: int) -> str:
    """Return the number and the name of an HTTP error status, and what to check."""
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    hint = "; check the header and the variables in its definition" if status in (401, 403) else ""
    hint = "; look at the path of its address" if status in (404, 405) else hint
    return f"HTTP {status}{phrase}{hint}"
