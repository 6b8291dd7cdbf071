"""How an identity provider is asked for its documents: at which addresses, how much, for how
long."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec

from ai_agent_service.config.settings import is_loopback

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets the body of an address, of at most MAX_DOCUMENT_BYTES, within FETCH_SECONDS; raises
UpstreamError."""

FETCH_SECONDS = 10.0


class KeySetStatus(msgspec.Struct, frozen=True):
    """How the keys of an identity provider stand: how many there are, how many seconds old, and why
    the last fetch failed, if it did."""

    is_usable: bool
    keys: int
    age_seconds: float | None
    error: str | None


def find_url_problem(url: object) -> str | None:
    """What is wrong with `url`, for a message, without repeating it; None where it may be asked:
    https, or http on this machine."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        return "this is no address"
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return "this is no address"
    if not host or parts.scheme not in ("http", "https"):
        return "this is no address that begins with https://"
    if "@" in parts.netloc or parts.fragment:
        return "the address has a user, a password or a part after #"
    if parts.scheme == "http" and not is_loopback(host):
        return "the address is not https"
    return None
