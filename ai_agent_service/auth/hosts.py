"""Tells whether a request names a host that is this service: a web page can make its own name lead here (DNS rebinding)."""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from ai_agent_service.auth.principal import Headers, values_of
from ai_agent_service.core.errors import CrossSiteRequest, HostNotAllowed

EVERY_NAME = "*"

_OWN_NAMES = frozenset({"localhost", "host.docker.internal", "host.containers.internal", "gateway.docker.internal"})
"""This machine's names, to itself and to its containers. No web page can have them, as none can have an address for a name."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{1,5})?")


def check_host(headers: Headers, allowed: frozenset[str]) -> None:
    """Raises HostNotAllowed for what `host_problem` tells of; to be called for callers that need no key."""
    if host_problem(headers, allowed):
        raise HostNotAllowed(
            "Without a key this service can be asked by an IP address or as localhost only, and by the names in ALLOWED_HOSTS: "
            "add the name that you use there."
        )


def check_origin(headers: Headers) -> None:
    """Raises CrossSiteRequest if a browser says that the request is of a page that this service did not send; for callers without a key."""
    origins = values_of(headers, b"origin")
    hosts = [value.lower() for value in values_of(headers, b"host")]
    if any(origin.lower().partition(b"://")[2] not in hosts for origin in origins):
        raise CrossSiteRequest("Requests from web pages of other sites are not taken without a key.")


def host_problem(headers: Headers, allowed: frozenset[str]) -> bool:
    """Whether the one Host header is missing, malformed, or a name that is neither this machine's nor in `allowed`.

    `allowed` is as in ALLOWED_HOSTS: names in any case, `*` for all of them. Ports do not count.
    """
    names = _normalised(allowed)
    found = values_of(headers, b"host")
    if len(found) != 1:
        return True
    match = _HOST.fullmatch(found[0].decode("latin-1"))
    if match is None:
        return True
    if match[1] is not None:
        return not _is_address(match[1])
    name = _name(match[2])
    if EVERY_NAME in names or name in names or name in _OWN_NAMES or name.endswith(".localhost"):
        return not all(name.split("."))
    return not _is_address(match[2])


@lru_cache
def _normalised(allowed: frozenset[str]) -> frozenset[str]:
    return frozenset(_name(name.rsplit(":", 1)[0] if name.rpartition(":")[2].isdecimal() else name) for name in allowed)


def _name(text: str) -> str:
    return text.removesuffix(".").lower()


def _is_address(text: str) -> bool:
    try:
        IPv6Address(text) if ":" in text else IPv4Address(text)
    except AddressValueError:
        return False
    return True
