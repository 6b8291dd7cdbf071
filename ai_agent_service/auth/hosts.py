"""Tells whether a request names a host that is this service: a web page can make its own name lead
here (DNS rebinding)."""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from ai_agent_service.auth.principal import Headers, get_header_values
from ai_agent_service.core.errors import CrossSiteRequestError, HostNotAllowedError

ANY_HOST = "*"

_LOCAL_NAMES = frozenset(
    {"localhost", "host.docker.internal", "host.containers.internal", "gateway.docker.internal"}
)
"""This machine's names, to itself and to its containers. No web page can have them, as none can
have an address for a name."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{1,5})?")


def check_host(headers: Headers, allowed: frozenset[str]) -> None:
    """Raises HostNotAllowedError for what `has_invalid_host` tells of; to be called for callers
    that need no key."""
    if has_invalid_host(headers, allowed):
        raise HostNotAllowedError(
            "Without a key this service can be asked by an IP address or as localhost only, and by"
            " the names in ALLOWED_HOSTS: add the name that you use there."
        )


def check_origin(headers: Headers) -> None:
    """Raises CrossSiteRequestError if a browser says that the request is of a page that this
    service did not send; for callers without a key."""
    origins = get_header_values(headers, b"origin")
    hosts = [value.lower() for value in get_header_values(headers, b"host")]
    if any(origin.lower().partition(b"://")[2] not in hosts for origin in origins):
        raise CrossSiteRequestError(
            "Requests from web pages of other sites are not taken without a key."
        )


def has_invalid_host(headers: Headers, allowed: frozenset[str]) -> bool:
    """Whether the one Host header is missing, malformed, or a name that is neither this machine's
    nor in `allowed`.

    `allowed` is as in ALLOWED_HOSTS: names in any case, `*` for all of them. Ports do not count.
    """
    names = _normalize_names(allowed)
    found = get_header_values(headers, b"host")
    if len(found) != 1:
        return True
    match = _HOST.fullmatch(found[0].decode("latin-1"))
    if match is None:
        return True
    if match[1] is not None:
        return not _is_ip_address(match[1])
    name = _normalize_name(match[2])
    if ANY_HOST in names or name in names or name in _LOCAL_NAMES or name.endswith(".localhost"):
        return not all(name.split("."))
    return not _is_ip_address(match[2])


@lru_cache
def _normalize_names(allowed: frozenset[str]) -> frozenset[str]:
    return frozenset(
        _normalize_name(name.rsplit(":", 1)[0] if name.rpartition(":")[2].isdecimal() else name)
        for name in allowed
    )


def _normalize_name(text: str) -> str:
    return text.removesuffix(".").lower()


def _is_ip_address(text: str) -> bool:
    try:
        IPv6Address(text) if ":" in text else IPv4Address(text)
    except AddressValueError:
        return False
    return True
