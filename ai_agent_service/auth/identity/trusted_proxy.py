"""IDENTITY_MODE=trusted_proxy: a proxy in front of the service has made sure of the user, and says
so in plain headers."""

import hmac
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ai_agent_service.auth.identity.claims import (
    IdentityError,
    build_invalid_token,
    validate_names,
    validate_text,
)
from ai_agent_service.auth.principal import Headers, User, get_header_values

Network = IPv4Network | IPv6Network

MESSAGE = (
    "The proxy in front of this service tells it the user, and this request does not come from"
    " there as agreed."
)
_MAPPED_BITS = 96


def parse_network(written: str) -> Network:
    """The network, such as `10.0.0.0/8` or `fd00::/8`; IPv4 written as IPv6 (`::ffff:10.0.0.0/104`)
    is IPv4. Raises ValueError."""
    network = ip_network(written)
    if (
        isinstance(network, IPv6Network)
        and network.prefixlen >= _MAPPED_BITS
        and (mapped := network.network_address.ipv4_mapped)
    ):
        return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


class TrustedProxy:
    """Believes the headers of requests that come from one of `networks` and bring the secret.

    The names of headers are in any case. Ids are taken as they are, so what is URL-quoted stays so.
    """

    verifies = True
    source = None

    def __init__(
        self,
        *,
        networks: Iterable[Network],
        secret: str,
        secret_header: str,
        user_header: str,
        groups_header: str,
        roles_header: str,
    ) -> None:
        self._networks = tuple(networks)
        self._secret = secret.encode()
        self._secret_header = secret_header.lower().encode()
        self._user_header = user_header.lower().encode()
        self._groups_header = groups_header.lower().encode()
        self._roles_header = roles_header.lower().encode()

    async def identify_user(self, headers: Headers, peer: str | None) -> User:
        """The user that the proxy names; `peer` is the address of who connected, not what a header
        says of it. Raises InvalidTokenError."""
        try:
            self._check_sender(headers, peer)
            sent = get_header_values(headers, self._user_header)
            if len(sent) != 1:
                raise IdentityError("the header with the user is not there exactly once")
            return User(
                validate_text(_decode_header(sent[0]), "the user"),
                self._read_names(headers, self._roles_header),
                self._read_names(headers, self._groups_header),
            )
        except IdentityError as why:
            raise build_invalid_token("trusted_proxy", MESSAGE, why) from None

    def is_user_token(self, token: str) -> bool:
        """False: the Authorization header is the key's."""
        return False

    def _check_sender(self, headers: Headers, peer: str | None) -> None:
        try:
            address = ip_address(peer or "")
        except ValueError:
            raise IdentityError("who connected has no address") from None
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if not any(address in network for network in self._networks):
            raise IdentityError("the address is not in TRUSTED_PROXY_CIDRS")
        secrets = get_header_values(headers, self._secret_header)
        if len(secrets) != 1 or not hmac.compare_digest(secrets[0], self._secret):
            raise IdentityError(
                "the header with the secret is not there exactly once, or has another value"
            )

    def _read_names(self, headers: Headers, header: bytes) -> frozenset[str]:
        sent = get_header_values(headers, header)
        if len(sent) > 1:
            raise IdentityError("a header with groups or roles is there more than once")
        listed = (name.strip() for value in sent for name in _decode_header(value).split(","))
        return validate_names((name for name in listed if name), "a group or role")


def _decode_header(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise IdentityError("a header is not UTF-8") from None
