"""The keys in the database: made, listed, rotated and revoked by the operator."""

from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, RowMapping, func, select, text, update

from ai_agent_service.auth.keys.format import ParsedKey, generate_key, parse_key
from ai_agent_service.auth.keys.hashing import PEPPER_MISMATCH, KeyHasher, Pepper
from ai_agent_service.auth.principal import DEFAULT_SCOPES, Key, Rights
from ai_agent_service.observability.audit import audit
from ai_agent_service.storage.clock import read_database_time
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.tables import api_keys

ENVIRONMENT_PREFIX = "env_"
"""What the ids of keys in API_KEYS begin with."""

ROTATION_GRACE = timedelta(hours=24)
"""How long the old secret of a rotated key works, if nothing else is said."""

ADVISORY_LOCK = 0x61_61_73_5F_6B_65_79_73
"""The advisory lock of PostgreSQL under which keys are changed: `aas_keys` as a number."""

MAX_NAME_LENGTH = 100
DEFAULT_RIGHTS = Rights(scopes=DEFAULT_SCOPES)

KeyState = Literal["live", "rotating", "expired", "revoked", "unreadable"]


class KeyStoreError(Exception):
    """What was asked of a key cannot be; the text tells the operator why."""


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key and what became of it. `rotating`: the secret before the present one works too, until
    `previous_until`. `unreadable`: this version does not know all of its rights, and refuses it;
    the key has no scopes then."""

    key: Key
    state: KeyState
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    previous_until: datetime | None


class NewSecret(msgspec.Struct, frozen=True):
    """A key whose secret is new. `text` is the key as its caller needs it, which nobody can tell
    again."""

    stored: StoredKey
    text: str

    def __repr__(self) -> str:
        return f"NewSecret(stored={self.stored!r})"


def build_key(row: RowMapping) -> Key:
    """The key of a row of `api_keys`; raises msgspec.ValidationError for rights that this version
    does not know."""
    rights = msgspec.json.decode(row["rights"], type=Rights)
    names = {name: row[name] for name in ("key_id", "name", "tenant")}
    return Key(**names, **msgspec.structs.asdict(rights))


class KeyStore:
    """Changes the keys of a database whose tables are there; `pepper` is API_KEY_PEPPER.

    A key is named by its id, or by its name if one live key has that. Raises KeyStoreError,
    DecryptionError and MemoryUnavailableError.
    """

    def __init__(self, database: Database, *, pepper: str | None, cipher: Cipher) -> None:
        self._database = database
        self._pepper = Pepper(pepper, cipher)

    async def create(
        self,
        name: str,
        rights: Rights = DEFAULT_RIGHTS,
        *,
        tenant: str | None = None,
        expires_in: timedelta | None = None,
    ) -> NewSecret:
        """A new key, whose name no other live key has. Without `tenant` it reaches no conversations
        but its own."""
        _check_name(name, "name")
        if tenant is not None:
            _check_name(tenant, "tenant")
            if tenant.startswith(ENVIRONMENT_PREFIX):
                raise KeyStoreError(
                    f"the tenant {tenant!r} cannot be given: those that begin with"
                    f" {ENVIRONMENT_PREFIX} are of keys in API_KEYS"
                )
        given = generate_key()

        def insert_key(connection: Connection) -> StoredKey:
            now = _begin_change(connection)
            rows = _load_rows(connection)
            if any(
                row["name"] == name and _is_live(row, now) and row["key_id"] != given.key_id
                for row in rows
            ):
                raise KeyStoreError(
                    f"there is a live key with the name {name!r} already; revoke it, rotate it, or"
                    " take another name"
                )
            digests = self._prepare_hasher(connection, rows, now)
            if all(row["key_id"] != given.key_id for row in rows):
                values = {
                    "key_id": given.key_id,
                    "tenant": tenant or given.key_id,
                    "name": name,
                    "rights": msgspec.json.encode(rights, order="deterministic").decode(),
                    "digest": digests.compute_digest(given.secret),
                    "created_at": now,
                    "expires_at": None if expires_in is None else _add_span(now, expires_in),
                    "changed_at": now,
                }
                connection.execute(api_keys.insert().values(values))
            return _load_key(connection, given.key_id)

        return self._report_secret("key.created", await self._database.write(insert_key), given)

    async def list(self) -> tuple[StoredKey, ...]:
        """All keys, revoked and expired ones too, the oldest first."""

        def load_keys(connection: Connection) -> tuple[StoredKey, ...]:
            now = read_database_time(connection)
            return tuple(_describe_row(row, now) for row in _load_rows(connection))

        return await self._database.read(load_keys)

    async def find_problem(self) -> str | None:
        """What keeps all live keys from being accepted; None if nothing is known to."""

        def is_pepper_wrong(connection: Connection) -> bool:
            now = read_database_time(connection)
            return (
                any(_is_live(row, now) for row in _load_rows(connection))
                and self._pepper.read(connection).is_other
            )

        return PEPPER_MISMATCH if await self._database.read(is_pepper_wrong) else None

    async def revoke(self, named: str) -> StoredKey:
        """The key, which is refused from now on; one that was revoked before stays as it is."""
        key_id = await self._database.read(lambda connection: _find_id(connection, named))

        def set_revoked(connection: Connection) -> StoredKey:
            now = _begin_change(connection)
            is_this = api_keys.c.key_id == key_id
            connection.execute(
                update(api_keys)
                .where(is_this, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=now, changed_at=now)
            )
            return _load_key(connection, key_id)

        revoked = await self._database.write(set_revoked)
        _audit_change("key.revoked", revoked)
        return revoked

    async def rotate(self, named: str, *, grace: timedelta = ROTATION_GRACE) -> NewSecret:
        """A new secret for the key. The one that it has works for `grace` more, one from an earlier
        rotation no longer."""
        given = generate_key(
            await self._database.read(lambda connection: _find_id(connection, named))
        )

        def replace_secret(connection: Connection) -> StoredKey:
            now = _begin_change(connection)
            rows = _load_rows(connection)
            [row] = [row for row in rows if row["key_id"] == given.key_id]
            if not _is_live(row, now):
                state = "revoked" if row["revoked_at"] is not None else "expired"
                raise KeyStoreError(
                    f"the key {row['name']!r} ({given.key_id}) is {state}; make a new one, with"
                    f" --tenant {row['tenant']}"
                )
            digest = self._prepare_hasher(connection, rows, now).compute_digest(given.secret)
            if row["digest"] != digest:
                values = {
                    "digest": digest,
                    "previous_digest": row["digest"] if grace else None,
                    "previous_until": _add_span(now, grace) if grace else None,
                    "changed_at": now,
                }
                connection.execute(
                    update(api_keys).where(api_keys.c.key_id == given.key_id).values(values)
                )
            return _load_key(connection, given.key_id)

        return self._report_secret("key.rotated", await self._database.write(replace_secret), given)

    def _prepare_hasher(
        self, connection: Connection, rows: tuple[RowMapping, ...], now: datetime
    ) -> KeyHasher:
        """The digests for a new secret. All live keys have one pepper, so another one comes only
        once there are none."""
        digests = self._pepper.get_or_create(connection)
        if any(_is_live(row, now) for row in rows) and self._pepper.read(connection).is_other:
            raise KeyStoreError(PEPPER_MISMATCH)
        self._pepper.store_fingerprint(connection, digests)
        return digests

    @staticmethod
    def _report_secret(event: str, stored: StoredKey, given: ParsedKey) -> NewSecret:
        _audit_change(event, stored)
        return NewSecret(stored, given.text)


def _audit_change(event: str, stored: StoredKey) -> None:
    key = stored.key
    extra = {
        "key_id": key.key_id,
        "key_name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
    }
    audit.info(event, extra=extra)


def _begin_change(connection: Connection) -> datetime:
    """The time of a change, which is made alone: later than that of every earlier one, though the
    database's clock be set back, so that those who ask for what has changed since find it."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
    now = read_database_time(connection)
    newest: datetime | None = connection.execute(select(func.max(api_keys.c.changed_at))).scalar()
    return now if newest is None or newest < now else newest + timedelta(microseconds=1)


def _load_rows(connection: Connection) -> tuple[RowMapping, ...]:
    return tuple(
        connection.execute(
            select(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_id)
        ).mappings()
    )


def _load_key(connection: Connection, key_id: str) -> StoredKey:
    row = connection.execute(select(api_keys).where(api_keys.c.key_id == key_id)).mappings().one()
    return _describe_row(row, read_database_time(connection))


def _describe_row(row: RowMapping, now: datetime) -> StoredKey:
    state: KeyState = "live"
    if row["revoked_at"] is not None:
        state = "revoked"
    elif not _is_live(row, now):
        state = "expired"
    elif row["previous_until"] is not None and row["previous_until"] > now:
        state = "rotating"
    try:
        key = build_key(row)
    except msgspec.ValidationError:
        key = Key(key_id=row["key_id"], name=row["name"], tenant=row["tenant"], scopes=frozenset())
        state = "unreadable" if state in ("live", "rotating") else state
    times: dict[str, Any] = {
        name: row[name]
        for name in ("created_at", "expires_at", "revoked_at", "last_used_at", "previous_until")
    }
    return StoredKey(key=key, state=state, **times)


def _is_live(row: RowMapping, now: datetime) -> bool:
    return row["revoked_at"] is None and (row["expires_at"] is None or row["expires_at"] > now)


def _find_id(connection: Connection, named: str) -> str:
    given = parse_key(named)  # who found a key somewhere may name it by itself
    wanted = given.key_id if given is not None else named
    now = read_database_time(connection)
    rows = _load_rows(connection)
    if any(row["key_id"] == wanted for row in rows):
        return wanted
    called = [row for row in rows if row["name"] == wanted]
    live: list[str] = [row["key_id"] for row in called if _is_live(row, now)]
    if len(live) == 1:
        return live[0]
    if live:
        raise KeyStoreError(
            f"{len(live)} live keys have the name {wanted!r}; name one by its id: {', '.join(live)}"
        )
    if called:
        ids = ", ".join(row["key_id"] for row in called)
        raise KeyStoreError(
            f"no live key has the name {wanted!r}; name one that is expired or revoked by its id:"
            f" {ids}"
        )
    raise KeyStoreError(f"there is no key {wanted!r}; to see them: ai-agent-service keys list")


def _add_span(now: datetime, span: timedelta) -> datetime:
    try:
        return now + span
    except OverflowError:
        raise KeyStoreError("so late a time cannot be; a century is 36500d") from None


def _check_name(name: str, what: str) -> None:
    if (
        not name.strip()
        or name != name.strip()
        or not name.isprintable()
        or len(name) > MAX_NAME_LENGTH
    ):
        raise KeyStoreError(
            f"a {what} has 1 to {MAX_NAME_LENGTH} printable characters, with no space around them"
        )
