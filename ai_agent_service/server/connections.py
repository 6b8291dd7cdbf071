"""Bound the connections of one address, and find room where descriptors run short."""

import resource
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from ai_agent_service.auth.identity.trusted_proxy import Network, parse_network
from ai_agent_service.config.settings import Settings

_SITE_BITS = 64
"""The length of the prefix that one IPv6 caller usually has for itself."""

_CONNECTIONS_PER_RUN = 10
"""By default an address may have this many connections for each run that a process allows."""


class ConnectionLimit:
    """Counts the open connections of each address in this process.

    Connections over a unix socket, of this machine and of the networks `exempt` are not counted.
    An IPv6 caller counts as its /64 network.
    """

    def __init__(self, most: int, exempt: Iterable[Network], *, exempts_loopback: bool) -> None:
        self._most = most
        self._exempt = tuple(exempt)
        self._exempts_loopback = exempts_loopback
        self._open: Counter[str] = Counter()
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most_with_idle = files // 2 if files >= 0 else None
        """With more connections than this, idle ones are closed; None does not close any."""

    def take(self, client: tuple[str, int] | None) -> str | None:
        """Count a new connection; return what `release` takes, or None if it is one too many."""
        counted = self._find_subject(client)
        if counted and self._open[counted] >= self._most:
            return None
        if counted:
            self._open[counted] += 1
        return counted

    def release(self, counted: str) -> None:
        """Forget a connection that has ended."""
        if counted:
            self._open[counted] -= 1
            if not self._open[counted]:
                del self._open[counted]

    def _find_subject(self, client: tuple[str, int] | None) -> str:
        """Return what a connection counts for; nothing if it is not counted."""
        try:
            address = _parse_address(client[0] if client else "")
        except ValueError:  # a unix socket
            return ""
        if self._exempts_loopback and address.is_loopback:
            return ""
        if any(address in network for network in self._exempt):
            return ""
        if isinstance(address, IPv6Address):
            return str(IPv6Network((address, _SITE_BITS), strict=False))
        return str(address)


def build_connection_limit(settings: Settings) -> ConnectionLimit:
    """Return the limit that the settings describe."""
    most = settings.max_connections_per_address
    return ConnectionLimit(
        _CONNECTIONS_PER_RUN * settings.max_concurrent_requests if most is None else most,
        map(parse_network, settings.trusted_proxy_cidrs),
        exempts_loopback=True,
    )


def _parse_address(written: str) -> IPv4Address | IPv6Address:
    """Return the address; IPv4 written as IPv6 is IPv4. Raises ValueError."""
    address = ip_address(written)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
