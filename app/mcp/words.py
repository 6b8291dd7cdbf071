"""What we say of a server: on one line, short, and without its secrets."""

from http import HTTPStatus

from app.config.mcp import ServerDefinition
from app.core.text import storable, without_secrets

MAX_WORDS = 400


def words_of(text: str, definition: ServerDefinition, limit: int = MAX_WORDS) -> str:
    """`text` on one line, at most `limit` characters of it, and without the values of the server's variables."""
    return storable(without_secrets(" ".join(text.split()), definition.secrets))[:limit]


def status_words(status: int) -> str:
    """An HTTP status that is an error, by its number and its name, and what to look at."""
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    hint = "; check the header and the variables in its definition" if status in (401, 403) else ""
    return f"HTTP {status}{phrase}{hint}"
