"""Check the addresses of images and files in requests, which a provider may fetch from where it
runs.

The service itself fetches none, so it does not resolve names; the provider has to check where a
public name leads.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ai_agent_service.core.errors import InvalidRequestError

_HTTP = re.compile(r"https?://", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\x21-\x7e]|\\")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")

_PRIVATE_SUFFIXES = (
    *(
        "localhost",
        "localdomain",
        "local",
        "internal",
        "intranet",
        "private",
        "corp",
        "home",
        "lan",
        "home.arpa",
        "svc",
        "test",
        "invalid",
    ),
    *("metadata.tencentyun.com", "metadata.packet.net", "metadata.platformequinix.com"),
)
"""The suffixes of names of machines, private networks and metadata services of clouds."""

_NON_PUBLIC_4 = tuple(
    IPv4Network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)
"""Networks that Python takes for public and are not: protocol assignments (with a metadata
service), 6to4 relays, Azure's own host."""

_PUBLIC_6 = IPv6Network("2000::/3")
_NON_PUBLIC_6 = tuple(IPv6Network(text) for text in ("2001::/23", "2002::/16", "3fff::/20"))
"""Protocol assignments (with Teredo), 6to4 and documentation. Other forms of IPv4 within IPv6 are
outside of 2000::/3."""

_ISATAP = (0x00005EFE, 0x02005EFE)


def validate_image_url(url: str, place: str) -> str:
    """Return `url`, a `data:image/` URL or the http(s) address of a public host; raises
    InvalidRequestError with `place` as its param."""
    if url[:11].lower() == "data:image/":
        return url
    if not _HTTP.match(url):
        raise _build_error("An image is given as an http(s) address or as a data:image URL.", place)
    return _validate_url(url, place)


def validate_file_data(text: str, place: str) -> str:
    """Return `text`, base64 or any `data:` URL, or the address of a public host, which some
    providers accept; raises InvalidRequestError."""
    if _HTTP.match(text):
        return _validate_url(text, place)
    if text[:5].lower() == "data:":
        return text
    # Base64 has no colon. Parsers of addresses skip spaces and control characters at the beginning,
    # and some of them within.
    if ":" in text:
        raise _build_error(
            "This is given in base64, as a data: URL or as an http(s) address.", place
        )
    return text


def _validate_url(url: str, place: str) -> str:
    if _UNSAFE.search(url):
        raise _build_error(
            "An address has neither spaces, control characters, backslashes nor characters beyond"
            " ASCII.",
            place,
        )
    authority = re.split(r"[/?#]", url.split("://", 1)[1], maxsplit=1)[0]
    match = _AUTHORITY.fullmatch(authority)
    if match is None or int(match[3] or 0) > 65_535:
        raise _build_error(
            "The host of this address cannot be read; user names, passwords and escapes have no"
            " place in it.",
            place,
        )
    if not (
        _is_public_6(match[1])
        if match[1] is not None
        else _is_public_name(match[2].lower().removesuffix("."))
    ):
        raise _build_error("The address has to be that of a public host.", place)
    return url


def _is_public_name(name: str) -> bool:
    labels = name.split(".")
    if labels[-1].isdecimal() or labels[-1].startswith("0x"):
        # An IPv4 address. Programs do not agree on what other forms of one mean: 010.0.0.1 is
        # 8.0.0.1 to some and 10.0.0.1 to others.
        try:
            return _is_public(IPv4Address(name))
        except AddressValueError:
            return False
    if len(labels) == 1 or not all(_LABEL.fullmatch(label) for label in labels):
        return False
    return not any(name == suffix or name.endswith(f".{suffix}") for suffix in _PRIVATE_SUFFIXES)


def _is_public(address: IPv4Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _NON_PUBLIC_4)
    )


def _is_public_6(text: str) -> bool:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return False
    low = int(address) & 0xFFFF_FFFF_FFFF_FFFF
    if low >> 32 in _ISATAP and not _is_public(IPv4Address(low & 0xFFFF_FFFF)):
        return False
    return (
        address in _PUBLIC_6
        and address.is_global
        and not any(address in network for network in _NON_PUBLIC_6)
    )


def _build_error(problem: str, place: str) -> InvalidRequestError:
    return InvalidRequestError(problem, param=place, code="url_not_allowed")
