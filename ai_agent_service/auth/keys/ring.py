"""Tells whose a key is, for the running service: without asking the database for each request, and
while it is away."""

import asyncio
import hmac
import logging
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Self

import msgspec
from sqlalchemy import Connection, RowMapping, bindparam, or_, select, update

from ai_agent_service.auth.keys.format import ParsedKey, parse_key
from ai_agent_service.auth.keys.hashing import PEPPER_MISMATCH, KeyHasher, Pepper, PepperState
from ai_agent_service.auth.keys.store import ENVIRONMENT_PREFIX, build_key
from ai_agent_service.auth.principal import SCOPES, Key
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import (
    AccessUnavailableError,
    Fault,
    MemoryUnavailableError,
    UnauthorizedError,
)
from ai_agent_service.storage.clock import read_database_time
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher, DecryptionError
from ai_agent_service.storage.tables import api_keys

logger = logging.getLogger(__name__)

MIN_ENVIRONMENT_KEY_LENGTH = 20
MIN_PEPPER_LENGTH = 32

REFRESH_SECONDS = 2.0
"""How often it is asked what has changed: so long may a key that was revoked be accepted, and the
time that the answer takes."""

MIN_REFRESH_SECONDS = 0.25
"""How soon it may be asked again for a key that is not known."""

OVERLAP = timedelta(seconds=60)
"""What changed so long before the newest change is read again, for a change is seen only once its
transaction has ended."""

FULL_SECONDS = 300.0
"""How often all keys are read, to be rid of what was deleted by hand, or lost with a server that
failed."""

STALE_SECONDS = 300.0
"""How long keys that were read are accepted while the database is away."""

LAST_USE_SECONDS = 60.0
RETRY_AFTER = 2.0


def parse_environment_keys(settings: Settings) -> tuple[str, ...]:
    """The keys in API_KEYS."""
    text = settings.api_keys.get_secret_value() if settings.api_keys is not None else ""
    return tuple(key for item in text.split(",") if (key := item.strip()))


def find_key_faults(settings: Settings) -> list[Fault]:
    """What is wrong with API_KEYS and API_KEY_PEPPER; no key is shown, only its place."""
    keys = parse_environment_keys(settings)
    remedy = "Make a key with: openssl rand -hex 32"
    problems: list[str] = []
    if settings.api_keys is not None and not keys:
        problems.append("it is set and has no key")
    for number, key in enumerate(keys, start=1):
        if len(key) < MIN_ENVIRONMENT_KEY_LENGTH:
            problems.append(f"key {number} has fewer than {MIN_ENVIRONMENT_KEY_LENGTH} characters")
        if not all("!" <= character <= "~" for character in key):
            problems.append(
                f"key {number} has characters other than ASCII letters, digits and signs, which not"
                " every client can send"
            )
        if key in keys[: number - 1]:
            problems.append(f"keys {keys.index(key) + 1} and {number} are the same")
    faults = [Fault.in_environment("API_KEYS", problem, remedy) for problem in problems]
    pepper = settings.api_key_pepper
    if pepper is not None and len(pepper.get_secret_value()) < MIN_PEPPER_LENGTH:
        problem = f"it has fewer than {MIN_PEPPER_LENGTH} characters"
        remedy = "Make one with: openssl rand -hex 32"
        faults.append(Fault.in_environment("API_KEY_PEPPER", problem, remedy))
    return faults


class _CachedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it was read."""

    key: Key
    digest: bytes
    previous_digest: bytes | None
    previous_until: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None

    def __repr__(self) -> str:
        return f"_CachedKey(key={self.key!r})"

    def is_live(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


class KeyRing:
    """The keys of API_KEYS and those of the database, which is None where there is none; it is
    opened and closed by others.

    All keys of the database are held here and kept fresh, so that a change is known within seconds
    in every process, and that keys go on working for `stale_seconds` while the database is away.
    `pepper` is API_KEY_PEPPER.
    """

    def __init__(
        self,
        database: Database | None,
        *,
        environment_keys: tuple[str, ...],
        pepper: str | None,
        cipher: Cipher,
        stale_seconds: float = STALE_SECONDS,
        last_use_seconds: float = LAST_USE_SECONDS,
    ) -> None:
        self._database = database
        self._of_process = KeyHasher(secrets.token_hex(32))
        self._environment = tuple(
            (self._of_process.compute_digest(key), _build_environment_key(key))
            for key in environment_keys
        )
        self._pepper = Pepper(pepper, cipher)
        self._stale_seconds = stale_seconds
        self._last_use_seconds = last_use_seconds
        self._digests: KeyHasher | None = None
        self._nobodys = secrets.token_bytes(32)
        """The digest of no secret, which is compared with where there is no other."""
        self._held: dict[str, _CachedKey] = {}
        self._had_keys = False
        self._has_live = False
        self._newest: datetime | None = None
        self._read_at: float | None = None
        self._database_time = datetime.min.replace(tzinfo=UTC)
        """What the database's clock said at `_read_at`."""
        self._all_read_at: float | None = None
        self._is_awaited = False
        """Whether the database, never read before, was not there: it may be in a moment, such as
        when another process has made its tables, and until then nobody is let in."""
        self._reported: set[str] = set()
        self._used: dict[str, datetime] = {}
        self._wanted = asyncio.Event()
        self._answer: asyncio.Future[bool] | None = None
        """What those wait for whose key is not known: whether a reading succeeded that began after
        they came."""
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Reads the keys and keeps them fresh from now on; a database that cannot be used is waited
        for in the background."""
        if self._database is not None:
            self._answer = asyncio.get_running_loop().create_future()
            await self._refresh(self._database)
            self._tasks = (
                asyncio.create_task(self._keep_fresh(self._database)),
                asyncio.create_task(self._record_uses(self._database)),
            )

    async def close(self) -> None:
        """Stops, and notes the last uses."""
        tasks, self._tasks = self._tasks, ()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._answer is not None:
            self._answer.set_result(False)
            self._answer = None
        if self._database is not None:
            with suppress(MemoryUnavailableError):
                await self._write_uses(self._database)

    @property
    def has_keys(self) -> bool | None:
        """Whether callers have keys: there is one in API_KEYS, or was ever one in the database, be
        it expired or revoked by now.

        None while that is not known, because the database was never read.
        """
        if self._environment:
            return True
        if self._database is None:
            return False
        return None if self._read_at is None else self._had_keys

    @property
    def has_live_keys(self) -> bool:
        """Whether a key works: one in API_KEYS, or one in the database that was neither revoked nor
        expired when it was read last."""
        return bool(self._environment) or self._has_live

    @property
    def are_known(self) -> bool:
        """Whether it can be told if a key is valid: there are keys of API_KEYS, or those of the
        database were read of late."""
        if self._environment or self._database is None:
            return True
        return self._read_at is not None and time.monotonic() - self._read_at <= self._stale_seconds

    async def wait_until_read(self) -> None:
        """Return once the keys were read since this was called, or could not be."""
        await self._request_refresh()

    async def find(self, text: str) -> Key:
        """The key that `text` is. Raises UnauthorizedError, or AccessUnavailableError while that
        cannot be told."""
        if (key := self._find_environment_key(text)) is not None:
            return key
        given = parse_key(text)
        if given is None:
            raise UnauthorizedError
        held = self._match_key(given)
        if held is None and self._database is not None:
            if not await self._request_refresh():
                raise self._build_unavailable_error()
            held = self._match_key(given)
        if held is None:
            raise UnauthorizedError
        now = self._compute_now()
        if not held.is_live(now):
            raise UnauthorizedError
        if self._read_at is None or time.monotonic() - self._read_at > self._stale_seconds:
            raise self._build_unavailable_error()
        self._used[given.key_id] = now
        return held.key

    def _find_environment_key(self, text: str) -> Key | None:
        """The key of API_KEYS that `text` is; it is compared with all of them, so that the time
        tells nothing."""
        digest = self._of_process.compute_digest(text)
        found = None
        for known, key in self._environment:
            if hmac.compare_digest(digest, known):
                found = key
        return found

    def _match_key(self, given: ParsedKey) -> _CachedKey | None:
        """The key of this id if it has this secret, or had it before a rotation; the work is the
        same where there is no such id."""
        held = self._held.get(given.key_id)
        digest = (self._digests or self._of_process).compute_digest(given.secret)
        present, previous = self._nobodys, self._nobodys
        if held is not None:
            present = held.digest
            if (
                held.previous_digest is not None
                and held.previous_until is not None
                and held.previous_until > self._compute_now()
            ):
                previous = held.previous_digest
        is_present = hmac.compare_digest(digest, present)
        is_previous = hmac.compare_digest(digest, previous)
        return held if is_present or is_previous else None

    async def _request_refresh(self) -> bool:
        """Whether the keys were read since this was asked; those who ask meanwhile share one
        reading."""
        if self._answer is None:
            return False
        self._wanted.set()
        # A caller that leaves must not cancel what the others wait for.
        return await asyncio.shield(self._answer)

    async def _keep_fresh(self, database: Database) -> None:
        while True:
            await asyncio.sleep(MIN_REFRESH_SECONDS)
            if not self._is_awaited:
                with suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS - MIN_REFRESH_SECONDS):
                        await self._wanted.wait()
            self._wanted.clear()
            await self._refresh(database)

    async def _refresh(self, database: Database) -> None:
        """Reads what has changed and tells those who wait."""
        asked = self._replace_answer()
        succeeded = self._is_awaited = False
        try:
            await self._read(database)
            succeeded = True
        except MemoryUnavailableError:
            self._all_read_at = None  # what comes back may be another one
            self._is_awaited = self._read_at is None
        except DecryptionError as error:
            self._log_once("keys.pepper_unreadable", str(error))
        except Exception:
            logger.exception("keys.not_read")
        finally:
            asked.set_result(succeeded)
        if not succeeded:
            self._replace_answer().set_result(
                False
            )  # who came meanwhile need not wait for the next failure

    def _replace_answer(self) -> asyncio.Future[bool]:
        assert self._answer is not None
        asked, self._answer = self._answer, asyncio.get_running_loop().create_future()
        return asked

    async def _read(self, database: Database) -> None:
        began = time.monotonic()
        is_full = (
            self._newest is None
            or self._all_read_at is None
            or began - self._all_read_at >= FULL_SECONDS
        )
        since = None if is_full or self._newest is None else self._newest - OVERLAP

        def load_rows(
            connection: Connection,
        ) -> tuple[datetime, PepperState, list[RowMapping]]:
            wanted = (
                select(api_keys)
                if since is None
                else select(api_keys).where(api_keys.c.changed_at >= since)
            )
            now, state = read_database_time(connection), self._pepper.read(connection)
            return now, state, list(connection.execute(wanted).mappings())

        now, peppered, rows = await database.read(load_rows)
        held = {} if is_full else self._held
        for row in rows:
            try:
                held[row["key_id"]] = _build_cached_key(row)
            except msgspec.ValidationError as error:
                held.pop(row["key_id"], None)
                self._log_once(
                    "keys.unreadable",
                    f"the rights of the key {row['key_id']} cannot be read: {error}",
                )
        newest = max((row["changed_at"] for row in rows), default=None)
        self._newest = (
            newest if is_full or self._newest is None else max(self._newest, newest or self._newest)
        )
        self._held, self._digests = held, peppered.digests
        self._read_at, self._database_time = began, now
        if is_full:
            self._all_read_at = began
        is_live = any(each.is_live(now) for each in held.values())
        self._had_keys = self._had_keys or bool(rows)
        self._has_live = is_live
        if peppered.is_other and is_live:
            self._log_once("keys.other_pepper", PEPPER_MISMATCH)

    def _compute_now(self) -> datetime:
        """The time by the database's clock, as far as it is known since the last reading."""
        if self._read_at is None:
            return self._database_time
        return self._database_time + timedelta(seconds=time.monotonic() - self._read_at)

    def _log_once(self, event: str, reason: str) -> None:
        """Logs what keeps keys from being accepted, once."""
        if reason not in self._reported:
            self._reported.add(reason)
            logger.error(event, extra={"reason": reason})

    async def _record_uses(self, database: Database) -> None:
        while True:
            await asyncio.sleep(self._last_use_seconds)
            try:
                await self._write_uses(database)
            except MemoryUnavailableError:
                continue
            except Exception:
                logger.exception("keys.uses_not_noted")

    async def _write_uses(self, database: Database) -> None:
        """Stores when keys were used last; what could not be stored is kept for the next time."""
        used, self._used = self._used, {}
        if not used:
            return

        def store_uses(connection: Connection) -> None:
            at = bindparam("at", type_=api_keys.c.last_used_at.type)
            is_later = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < at)
            noted = (
                update(api_keys)
                .where(api_keys.c.key_id == bindparam("id"), is_later)
                .values(last_used_at=at)
            )
            # In one order, so that no two processes wait for each other.
            connection.execute(
                noted, [{"id": key_id, "at": used[key_id]} for key_id in sorted(used)]
            )

        try:
            await database.write(store_uses)
        except BaseException:
            self._used = used | self._used
            raise

    @staticmethod
    def _build_unavailable_error() -> AccessUnavailableError:
        return AccessUnavailableError(
            "It cannot be told now whether this key is valid. Try again in a moment.",
            retry_after=RETRY_AFTER,
        )


def _build_environment_key(text: str) -> Key:
    """The key of API_KEYS. Its id is the same in every process, and after every start, for its
    conversations are found by it."""
    key_id = (
        ENVIRONMENT_PREFIX
        + hmac.digest(b"ai-agent-service API_KEYS", text.encode(), "sha256")[:6].hex()
    )
    return Key(key_id=key_id, name="API_KEYS", tenant=key_id, scopes=SCOPES)


def _build_cached_key(row: RowMapping) -> _CachedKey:
    return _CachedKey(
        key=build_key(row),
        digest=row["digest"],
        previous_digest=row["previous_digest"],
        previous_until=row["previous_until"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
