"""The keys that an identity provider signs with (JWK Set, RFC 7517): fetched, kept, and fetched
anew when they change."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key
from joserfc.util import base64_to_int

from ai_agent_service.auth.identity.fetch import Fetch, KeySetStatus, find_url_problem
from ai_agent_service.auth.identity.jwt import PinnedAlgorithms
from ai_agent_service.core.bounds import MAX_DOCUMENT_BYTES
from ai_agent_service.core.errors import AccessUnavailableError, UpstreamError
from ai_agent_service.core.tasks import Tasks

logger = logging.getLogger(__name__)

MAX_KEYS = 100
MIN_RSA_BITS = 2048
FRESH_SECONDS = 600.0
"""How old keys may be before they are fetched anew, in the background."""
MAX_STALE_SECONDS = 86_400.0
"""How old keys may be where they cannot be fetched anew."""
UNKNOWN_PAUSE = 30.0
"""Seconds from one fetch to the next for keys that are not known, which anybody can ask for."""
FAILED_PAUSE = 5.0
"""Seconds from one fetch to the next while there are no keys at all."""

_CURVES = {"EC": ("P-256", "P-384", "P-521"), "OKP": ("Ed25519", "Ed448")}


class _InvalidDocumentError(Exception):
    """What the identity provider answers is not what it should be."""


class _Discovery(msgspec.Struct):
    """What is read of OpenID Connect's discovery document."""

    issuer: str
    jwks_uri: str


class _KeySetDocument(msgspec.Struct):
    keys: list[Any]


class Jwks:
    """The keys of `issuer`, from `url` or from where its discovery document says.

    They are fetched by one task at a time, in `tasks`. `clock` gives seconds that only go forward.
    """

    def __init__(
        self,
        issuer: str,
        url: str | None,
        algorithms: PinnedAlgorithms,
        fetch: Fetch,
        tasks: Tasks,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._url = url
        self._algorithms = algorithms
        self._fetch = fetch
        self._tasks = tasks
        self._clock = clock
        self._keys: list[Key] = []
        self._read_at = -math.inf
        self._tried_at = -math.inf
        self._failed = False
        self._error: str | None = None
        """Why the last fetch failed."""

        self._task: asyncio.Task[None] | None = None

    async def find_key(self, key_id: str | None, algorithm: str) -> Key | None:
        """The key with the id for the algorithm; without an id the only one for it. None where
        there is no such key.

        Raises AccessUnavailableError where that cannot be told.
        """
        age = self._clock() - self._read_at
        if age > MAX_STALE_SECONDS:
            await self._wait_for_refresh(FAILED_PAUSE)
            if self._clock() - self._read_at > MAX_STALE_SECONDS:
                raise self._build_unavailable_error(FAILED_PAUSE)
        elif age > FRESH_SECONDS:
            _ = self._start_refresh(UNKNOWN_PAUSE)
        if (found := self._find_cached(key_id, algorithm)) is None:
            await self._wait_for_refresh(UNKNOWN_PAUSE)
            found = self._find_cached(key_id, algorithm)
            if found is None and self._failed:
                raise self._build_unavailable_error(UNKNOWN_PAUSE)
        return found

    @property
    def source(self) -> KeySetStatus:
        """How the keys stand. Those that are not there are asked for: nobody is sent here whose
        token would have them fetched."""
        age = self._clock() - self._read_at
        is_usable = age <= MAX_STALE_SECONDS
        if not is_usable:
            self.prefetch()
        return KeySetStatus(
            is_usable, len(self._keys), age if math.isfinite(age) else None, self._error
        )

    def prefetch(self) -> None:
        """Begins to fetch the keys, so that the first token need not wait."""
        _ = self._start_refresh(FAILED_PAUSE)

    def _find_cached(self, key_id: str | None, algorithm: str) -> Key | None:
        fitting = [
            key
            for key in self._keys
            if key_id in (None, key.kid) and self._algorithms.is_compatible(algorithm, key)
        ]
        return fitting[0] if len(fitting) == 1 or (fitting and key_id is not None) else None

    async def _wait_for_refresh(self, pause: float) -> None:
        if (task := self._start_refresh(pause)) is not None:
            await asyncio.shield(task)

    def _start_refresh(self, pause: float) -> asyncio.Task[None] | None:
        """The task that fetches the keys: the one under way, else a new one, unless the last began
        within `pause` seconds."""
        if self._task is None and self._clock() - self._tried_at >= pause:
            self._tried_at = self._clock()
            self._task = self._tasks.start(self._refresh())
        return self._task

    async def _refresh(self) -> None:
        self._failed = True
        try:
            self._keys = _parse_keys(await self._fetch_document(await self._resolve_url()))
        except (UpstreamError, _InvalidDocumentError) as error:
            self._error = str(error)
            logger.warning(
                "identity.keys_unavailable", extra={"issuer": self._issuer, "cause": str(error)}
            )
        else:
            self._failed = False
            self._error = None
            self._read_at = self._clock()
            if not self._keys:
                logger.warning("identity.no_usable_key", extra={"issuer": self._issuer})
        finally:
            self._task = None

    async def _resolve_url(self) -> str:
        if self._url is not None:
            return self._url
        document = await self._fetch_document(
            f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        )
        try:
            discovery = msgspec.json.decode(document, type=_Discovery)
        except (ValueError, RecursionError):
            raise _InvalidDocumentError("the discovery document is not one") from None
        if discovery.issuer != self._issuer:
            raise _InvalidDocumentError(
                "the discovery document is of another issuer than OIDC_ISSUER"
            )
        if fault := find_url_problem(discovery.jwks_uri):
            raise _InvalidDocumentError(f"jwks_uri in the discovery document: {fault}")
        return discovery.jwks_uri

    async def _fetch_document(self, url: str) -> bytes:
        document = await self._fetch(url)
        if len(document) > MAX_DOCUMENT_BYTES:
            raise _InvalidDocumentError(f"an answer has more than {MAX_DOCUMENT_BYTES} bytes")
        return document

    def _build_unavailable_error(self, pause: float) -> AccessUnavailableError:
        left = max(1.0, math.ceil(self._tried_at + pause - self._clock()))
        return AccessUnavailableError(
            "The identity provider cannot be asked now. Try again in a moment.", retry_after=left
        )


def _parse_keys(document: bytes) -> list[Key]:
    """The keys of a JWK Set that signatures can be verified by; what it has besides is left out, as
    RFC 7517 (5) wants it."""
    try:
        listed = msgspec.json.decode(document, type=_KeySetDocument).keys
    except (ValueError, RecursionError):
        raise _InvalidDocumentError("the list of keys is not one") from None
    if len(listed) > MAX_KEYS:
        raise _InvalidDocumentError(f"there are more than {MAX_KEYS} keys")
    return [
        key
        for written in listed
        if isinstance(written, dict) and (key := _parse_key(written)) is not None
    ]


def _parse_key(written: dict[str, Any]) -> Key | None:
    """The public key for signatures that `written` is; None for keys of other kinds and uses, weak
    ones and such as are not well formed."""
    kind = written.get("kty")
    operations = written.get("key_ops", ["verify"])
    if (
        written.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
        or "d" in written
    ):
        return None
    if not isinstance(written.get("kid", ""), str):
        return None
    try:
        match kind:
            case "RSA":
                if base64_to_int(written["n"]).bit_length() < MIN_RSA_BITS:
                    return None
            case "EC" | "OKP":
                if written.get("crv") not in _CURVES[kind]:
                    return None
            case _:
                return None
        return JWKRegistry.import_key(written)
    except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, LookupError) as error:
        logger.info("identity.key_left_out", extra={"cause": type(error).__name__})
        return None
