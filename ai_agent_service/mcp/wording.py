"""What we say of a server: on one line, short, and without its secrets."""

from http import HTTPStatus

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.redaction import redact_secrets
from ai_agent_service.core.text import replace_unstorable

MAX_MESSAGE_LENGTH = 400


def sanitize_message(
    text: str, definition: ServerDefinition, limit: int = MAX_MESSAGE_LENGTH
) -> str:
    """`text` on one line, at most `limit` characters of it, and without the values of the server's
    variables."""
    return replace_unstorable(" ".join(redact_secrets(text, definition.secrets).split()))[:limit]


def redact_credentials(text: str, definition: ServerDefinition) -> str:
    """`text` without the server's credentials, and otherwise as it is: a path that a variable holds
    is of use to the model."""
    for secret in definition.credentials:
        text = text.replace(secret, "[redacted]")
    return text


def describe_status(status: int) -> str:
    """An HTTP status that is an error, by its number and its name, and what to look at."""
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    hint = "; check the header and the variables in its definition" if status in (401, 403) else ""
    hint = "; look at the path of its address" if status in (404, 405) else hint
    return f"HTTP {status}{phrase}{hint}"
