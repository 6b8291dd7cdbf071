"""Decides who a request comes from: reads its key, has it verified, and asks who the user behind it
is."""

import asyncio
from collections.abc import Collection
from contextlib import suppress

from ai_agent_service.auth.hosts import check_host, check_origin
from ai_agent_service.auth.identity.base import Identity
from ai_agent_service.auth.keys.format import PREFIX
from ai_agent_service.auth.keys.ring import KeyRing
from ai_agent_service.auth.principal import LOCAL, Headers, Key, Principal
from ai_agent_service.core.bounds import MAX_KEY_LENGTH
from ai_agent_service.core.errors import (
    AccessUnavailableError,
    HostNotAllowedError,
    RequestError,
    UnauthorizedError,
)
from ai_agent_service.storage.database import FIRST_WAIT_SECONDS, Database

PROXY_HEADERS = frozenset(
    {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"}
)
"""Headers that a proxy adds, and nobody else has a reason to."""

AUTHORIZATION = b"authorization"
API_KEY = b"x-api-key"


class Access:
    """Tells who calls.

    Callers without a key are let in where `allow_unauthenticated` says so; or where the service
    `is_local`, reached by this machine alone, and there never was a key, if they call it by a name
    of this machine or one of `allowed_hosts`, for a web page may have made its own name lead here,
    and not through a proxy.
    """

    def __init__(
        self,
        keys: KeyRing,
        identity: Identity,
        *,
        is_local: bool,
        allow_unauthenticated: bool,
        allowed_hosts: Collection[str],
        database: Database | None,
    ) -> None:
        self.database = database
        """Where the keys are; None where there is none."""

        self._keys = keys
        self.identity = identity
        self._is_local = is_local
        self._allow_unauthenticated = allow_unauthenticated
        self._allowed_hosts = frozenset(allowed_hosts)

    @property
    def is_open(self) -> bool:
        """Whether callers need no key."""
        return self._allow_unauthenticated or (self._is_local and self._keys.has_keys is False)

    @property
    def has_live_keys(self) -> bool:
        """Whether there is a key that works."""
        return self._keys.has_live_keys

    async def wait_until_known(self) -> None:
        """Return once the database was prepared and its keys were read, or that has failed."""
        if self.database is not None:
            await self.database.wait_until_tried()
            await self._keys.wait_until_read()

    @property
    def problem(self) -> str | None:
        """What keeps everybody out, in a sentence; None if nothing is known to."""
        if not self._allow_unauthenticated and not self._keys.are_known:
            return "The keys of callers cannot be read."
        source = self.identity.source
        return (
            "The keys of the identity provider were never fetched."
            if source is not None and not source.is_usable
            else None
        )

    def can_skip_key(self, headers: Headers) -> bool:
        """Whether a request with these headers needs no key."""
        try:
            self._admit_without_key(headers)
        except (RequestError, AccessUnavailableError):
            return False
        return True

    async def authenticate(
        self, headers: Headers, peer: str | None, *, identified: bool
    ) -> Principal:
        """Who sends a request with these headers from the address `peer`; with `identified`, the
        user behind the key too.

        Raises UnauthorizedError, InvalidTokenError, HostNotAllowedError and AccessUnavailableError.
        """
        given = self._read_key(headers)
        if self._keys.has_keys is None and not self._allow_unauthenticated:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_WAIT_SECONDS):
                    await self.wait_until_known()
        key = (
            await self._keys.find(given)
            if given is not None and self._is_key(given)
            else self._admit_without_key(headers)
        )
        return Principal(
            key, await self.identity.identify_user(headers, peer) if identified else None
        )

    def _is_key(self, given: str) -> bool:
        """Whether what stands where a key does is one: where none is needed, clients that insist on
        one send anything."""
        return (
            not self.is_open
            or given.startswith(f"{PREFIX}_")
            or (self._allow_unauthenticated and bool(self._keys.has_keys))
        )

    def _admit_without_key(self, headers: Headers) -> Key:
        if self._allow_unauthenticated:
            if self._allowed_hosts:
                check_host(headers, self._allowed_hosts)
        elif not self._is_local or self._keys.has_keys:
            raise UnauthorizedError
        elif self._keys.has_keys is None:
            raise AccessUnavailableError(
                "It cannot be told now whether a key is needed. Try again in a moment.",
                retry_after=2,
            )
        elif any(name in PROXY_HEADERS for name, _ in headers):
            raise HostNotAllowedError(
                "Without a key this service answers its own machine alone, and this request came"
                " through a proxy. Make a key, or set ALLOW_UNAUTHENTICATED=true."
            )
        else:
            check_host(headers, self._allowed_hosts)
        check_origin(headers)
        return LOCAL

    def _read_key(self, headers: Headers) -> str | None:
        """What stands where a key does; None if nothing does. Two that differ are refused, for
        either may be a mistake."""
        found: str | None = None
        for name, value in headers:
            if name == API_KEY:
                given = value.decode("latin-1").strip(" \t")
            elif name == AUTHORIZATION:
                scheme, _, rest = value.decode("latin-1").partition(" ")
                given = rest.strip(" \t")
                if scheme.lower() != "bearer" or self.identity.is_user_token(given):
                    continue
            else:
                continue
            if not given:
                continue
            if len(given) > MAX_KEY_LENGTH or (found is not None and found != given):
                raise UnauthorizedError
            found = given
        return found
