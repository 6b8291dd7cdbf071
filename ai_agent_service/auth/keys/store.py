"""The keys in the database: made, listed, rotated and revoked by the operator."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, RowMapping, func, select, text, update

from ai_agent_service.auth.keys.format import GivenKey, new_secret, parse
from ai_agent_service.auth.keys.hashing import OTHER_PEPPER, Digests, Pepper
from ai_agent_service.auth.principal import DEFAULT_SCOPES, UNLIMITED, Client, Key, Limits, Scope
from ai_agent_service.observability.audit import audit
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.engine import database_time
from ai_agent_service.storage.tables import api_keys

ENVIRONMENT_PREFIX = "env_"
"""What the ids of keys in API_KEYS begin with."""

GRACE = timedelta(hours=24)
"""How long the old secret of a rotated key works, if nothing else is said."""

LOCK = 0x61_61_73_5F_6B_65_79_73
"""The advisory lock of PostgreSQL under which keys are changed: `aas_keys` as a number."""

MAX_NAME = 100

State = Literal["live", "rotating", "expired", "revoked", "unreadable"]


class KeyRefused(Exception):
    """What was asked of a key cannot be; the text tells the operator why."""


class Rights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may do, as it is stored; see Key."""

    scopes: frozenset[Scope]
    agents: frozenset[str] | None = None
    client: Client | None = None
    limits: Limits = UNLIMITED
    user_limits: Limits = UNLIMITED


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key and what became of it. `rotating`: the secret before the present one works too, until `previous_until`. `unreadable`: this
    version does not know all of its rights, and refuses it; the key has no scopes then."""

    key: Key
    state: State
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    previous_until: datetime | None


class NewSecret(msgspec.Struct, frozen=True):
    """A key whose secret is new. `text` is the key as its caller needs it, which nobody can tell again."""

    stored: StoredKey
    text: str

    def __repr__(self) -> str:
        return f"NewSecret(stored={self.stored!r})"


def key_of(row: RowMapping) -> Key:
    """The key of a row of `api_keys`; raises msgspec.ValidationError for rights that this version does not know."""
    rights = msgspec.json.decode(row["rights"], type=Rights)
    return Key(
        key_id=row["key_id"],
        name=row["name"],
        tenant=row["tenant"],
        scopes=rights.scopes,
        agents=rights.agents,
        client=rights.client,
        limits=rights.limits,
        user_limits=rights.user_limits,
    )


class KeyStore:
    """Changes the keys of a database whose tables are there; `pepper` is API_KEY_PEPPER.

    A key is named by its id, or by its name if one live key has that. Raises KeyRefused, Undecryptable and MemoryUnavailable.
    """

    def __init__(self, database: Database, *, pepper: str | None, cipher: Cipher) -> None:
        self._database = database
        self._pepper = Pepper(pepper, cipher)

    async def create(
        self,
        name: str,
        *,
        scopes: Iterable[Scope] = DEFAULT_SCOPES,
        agents: Iterable[str] | None = None,
        client: Client | None = None,
        tenant: str | None = None,
        limits: Limits = UNLIMITED,
        user_limits: Limits = UNLIMITED,
        expires_in: timedelta | None = None,
    ) -> NewSecret:
        """A new key, whose name no other live key has. Without `tenant` it reaches no conversations but its own."""
        _check_name(name, "name")
        if tenant is not None:
            _check_name(tenant, "tenant")
            if tenant.startswith(ENVIRONMENT_PREFIX):
                raise KeyRefused(
                    f"the tenant {tenant!r} cannot be given: those that begin with {ENVIRONMENT_PREFIX} are of keys in API_KEYS"
                )
        given = new_secret()
        rights = Rights(
            scopes=frozenset(scopes),
            agents=None if agents is None else frozenset(agents),
            client=client,
            limits=limits,
            user_limits=user_limits,
        )

        def work(connection: Connection) -> StoredKey:
            now = _begin(connection)
            rows = _rows(connection)
            if any(row["name"] == name and _is_live(row, now) and row["key_id"] != given.key_id for row in rows):
                raise KeyRefused(f"there is a live key with the name {name!r} already; revoke it, rotate it, or take another name")
            digests = self._digests(connection, rows, now)
            if all(row["key_id"] != given.key_id for row in rows):
                values = {
                    "key_id": given.key_id,
                    "tenant": tenant or given.key_id,
                    "name": name,
                    "rights": msgspec.json.encode(rights, order="deterministic").decode(),
                    "digest": digests.of(given.secret),
                    "created_at": now,
                    "expires_at": None if expires_in is None else _later(now, expires_in),
                    "changed_at": now,
                }
                connection.execute(api_keys.insert().values(values))
            return _stored(connection, given.key_id)

        return self._made("key.created", await self._database.write(work), given)

    async def list(self) -> tuple[StoredKey, ...]:
        """All keys, revoked and expired ones too, the oldest first."""

        def work(connection: Connection) -> tuple[StoredKey, ...]:
            now = database_time(connection)
            return tuple(_described(row, now) for row in _rows(connection))

        return await self._database.read(work)

    async def problem(self) -> str | None:
        """What keeps all live keys from being accepted; None if nothing is known to."""

        def work(connection: Connection) -> bool:
            now = database_time(connection)
            return any(_is_live(row, now) for row in _rows(connection)) and self._pepper.read(connection).is_other

        return OTHER_PEPPER if await self._database.read(work) else None

    async def revoke(self, named: str) -> StoredKey:
        """The key, which is refused from now on; one that was revoked before stays as it is."""
        key_id = await self._database.read(lambda connection: _id_of(connection, named))

        def work(connection: Connection) -> StoredKey:
            now = _begin(connection)
            is_this = api_keys.c.key_id == key_id
            connection.execute(update(api_keys).where(is_this, api_keys.c.revoked_at.is_(None)).values(revoked_at=now, changed_at=now))
            return _stored(connection, key_id)

        revoked = await self._database.write(work)
        _tell("key.revoked", revoked)
        return revoked

    async def rotate(self, named: str, *, grace: timedelta = GRACE) -> NewSecret:
        """A new secret for the key. The one that it has works for `grace` more, one from an earlier rotation no longer."""
        given = new_secret(await self._database.read(lambda connection: _id_of(connection, named)))

        def work(connection: Connection) -> StoredKey:
            now = _begin(connection)
            rows = _rows(connection)
            [row] = [row for row in rows if row["key_id"] == given.key_id]
            if not _is_live(row, now):
                state = "revoked" if row["revoked_at"] is not None else "expired"
                raise KeyRefused(f"the key {row['name']!r} ({given.key_id}) is {state}; make a new one, with --tenant {row['tenant']}")
            digest = self._digests(connection, rows, now).of(given.secret)
            if row["digest"] != digest:
                values = {
                    "digest": digest,
                    "previous_digest": row["digest"] if grace else None,
                    "previous_until": _later(now, grace) if grace else None,
                    "changed_at": now,
                }
                connection.execute(update(api_keys).where(api_keys.c.key_id == given.key_id).values(values))
            return _stored(connection, given.key_id)

        return self._made("key.rotated", await self._database.write(work), given)

    def _digests(self, connection: Connection, rows: tuple[RowMapping, ...], now: datetime) -> Digests:
        """The digests for a new secret. All live keys have one pepper, so another one comes only once there are none."""
        digests = self._pepper.made(connection)
        if any(_is_live(row, now) for row in rows) and self._pepper.read(connection).is_other:
            raise KeyRefused(OTHER_PEPPER)
        self._pepper.keep_fingerprint(connection, digests)
        return digests

    @staticmethod
    def _made(event: str, stored: StoredKey, given: GivenKey) -> NewSecret:
        _tell(event, stored)
        return NewSecret(stored, given.text)


def _tell(event: str, stored: StoredKey) -> None:
    key = stored.key
    extra = {"key_id": key.key_id, "key_name": key.name, "tenant": key.tenant, "scopes": sorted(key.scopes)}
    audit.info(event, extra=extra)


def _begin(connection: Connection) -> datetime:
    """The time of a change, which is made alone: later than that of every earlier one, though the database's clock be set back, so that
    those who ask for what has changed since find it."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    now = database_time(connection)
    newest: datetime | None = connection.execute(select(func.max(api_keys.c.changed_at))).scalar()
    return now if newest is None or newest < now else newest + timedelta(microseconds=1)


def _rows(connection: Connection) -> tuple[RowMapping, ...]:
    return tuple(connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_id)).mappings())


def _stored(connection: Connection, key_id: str) -> StoredKey:
    row = connection.execute(select(api_keys).where(api_keys.c.key_id == key_id)).mappings().one()
    return _described(row, database_time(connection))


def _described(row: RowMapping, now: datetime) -> StoredKey:
    state: State = "live"
    if row["revoked_at"] is not None:
        state = "revoked"
    elif not _is_live(row, now):
        state = "expired"
    elif row["previous_until"] is not None and row["previous_until"] > now:
        state = "rotating"
    try:
        key = key_of(row)
    except msgspec.ValidationError:
        key = Key(key_id=row["key_id"], name=row["name"], tenant=row["tenant"], scopes=frozenset())
        state = "unreadable" if state in ("live", "rotating") else state
    times: dict[str, Any] = {name: row[name] for name in ("created_at", "expires_at", "revoked_at", "last_used_at", "previous_until")}
    return StoredKey(key=key, state=state, **times)


def _is_live(row: RowMapping, now: datetime) -> bool:
    return row["revoked_at"] is None and (row["expires_at"] is None or row["expires_at"] > now)


def _id_of(connection: Connection, named: str) -> str:
    given = parse(named)  # who found a key somewhere may name it by itself
    wanted = given.key_id if given is not None else named
    now = database_time(connection)
    rows = _rows(connection)
    if any(row["key_id"] == wanted for row in rows):
        return wanted
    called = [row for row in rows if row["name"] == wanted]
    live: list[str] = [row["key_id"] for row in called if _is_live(row, now)]
    if len(live) == 1:
        return live[0]
    if live:
        raise KeyRefused(f"{len(live)} live keys have the name {wanted!r}; name one by its id: {', '.join(live)}")
    if called:
        ids = ", ".join(row["key_id"] for row in called)
        raise KeyRefused(f"no live key has the name {wanted!r}; name one that is expired or revoked by its id: {ids}")
    raise KeyRefused(f"there is no key {wanted!r}; to see them: ai-agent-service keys list")


def _later(now: datetime, span: timedelta) -> datetime:
    try:
        return now + span
    except OverflowError:
        raise KeyRefused("so late a time cannot be; a century is 36500d") from None


def _check_name(name: str, what: str) -> None:
    if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        raise KeyRefused(f"a {what} has 1 to {MAX_NAME} printable characters, with no space around them")
