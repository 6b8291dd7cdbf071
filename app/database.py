"""ai-agent-service db: the operator's commands on the database of conversations."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from app.config.settings import Settings, read_settings
from app.core.errors import ConfigError, Fault, MemoryUnavailable
from app.memory.base import Erased
from app.memory.conversations import SqlConversations
from app.memory.opening import address_of, cipher_of, engine_of
from app.memory.reencryption import Reencrypted, check_address_key, count_rows, living_processes, reencrypt
from app.memory.store import Store
from app.observability.logging import configure_logging
from app.storage.address import Address
from app.storage.backup import BackupFailed, back_up, dump_command, load_command, put_in_place, staged
from app.storage.cipher import Cipher, Undecryptable
from app.storage.database import Database
from app.storage.engines import DatabaseEngine
from app.storage.migrate import HEAD, current_revision, upgrade

T = TypeVar("T")
TENANT = "local"


class Target(msgspec.Struct, frozen=True):
    """A database, by default that of the settings; `shown` is what it is called in messages."""

    settings: Settings
    address: Address
    cipher: Cipher
    shown: str


@click.group()
def db() -> None:
    """Look after the database of conversations."""
    configure_logging("CRITICAL")


@db.command("upgrade")
def upgrade_tables() -> None:
    """Make the tables, or change them to those of this version."""
    target = _target()
    before = asyncio.run(_upgraded(target))
    if before == HEAD:
        click.echo(f"The tables of {target.shown} have the revision {HEAD} already.")
    elif before is None:
        click.echo(f"The tables of {target.shown} were made, with the revision {HEAD}.")
    else:
        click.echo(f"The tables of {target.shown} were changed from the revision {before} to {HEAD}.")


@db.command()
def current() -> None:
    """Show the tables' revision, the kind of database and its address."""
    target = _existing(_target())
    revision = asyncio.run(_revision(target))
    click.echo(f"revision {revision or 'none'}, {target.address.kind}, {target.shown}")


@db.command()
def check() -> None:
    """Tell whether the service can use the database. If it cannot, tell why and exit with 1."""
    target = _existing(_target())
    asyncio.run(_checked(target))
    click.echo(f"{target.shown} can be used; its tables have the revision {HEAD}.")


@db.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Write over FILE if it is there.")
def backup(file: Path, force: bool) -> None:
    """Copy the SQLite database to FILE while the service runs."""
    target = _existing(_target())
    if target.address.kind == "postgresql":
        raise click.ClickException(f"a PostgreSQL database is backed up with its own program: {dump_command(target.address, file)}")
    try:
        made = back_up(target.address.path, file, force=force)
    except BackupFailed as error:
        raise click.ClickException(str(error)) from error
    size = f"{made.size / 1_000_000:,.1f} MB"
    click.echo(f"{target.shown} was backed up to {file}: {made.sessions:,} conversations, {made.messages:,} messages, {size}.")


@db.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Also while a service uses the database, or without the key that FILE needs.")
def restore(file: Path, force: bool) -> None:
    """Put a backup in the SQLite database's place. What was there before is kept beside it."""
    target = _target()
    if target.address.kind == "postgresql":
        raise click.ClickException(f"a PostgreSQL database is restored with its own program: {load_command(target.address, file)}")
    path = target.address.path
    try:
        with staged(file, path) as copy:
            of_file = msgspec.structs.replace(target, address=Address("sqlite", copy.as_posix()), shown=str(file))
            before = asyncio.run(_prepared(of_file, force=force))
            if path.exists() and not force:
                asyncio.run(_refuse_if_used(target))
            kept = put_in_place(copy, path)
    except BackupFailed as error:
        raise click.ClickException(str(error)) from error
    changed = "" if before == HEAD else f", its tables changed from the revision {before} to {HEAD}"
    note = f" What was there before is in {kept}." if kept else ""
    restart = " Restart the service." if force else ""
    click.echo(f"{target.shown} was restored from {file}{changed}.{note}{restart}")


@db.command("reencrypt")
@click.option("--plain", is_flag=True, help="Decrypt everything for good, with the keys still set; the service must not run.")
def reencrypt_values(plain: bool) -> None:
    """Encrypt everything with the newest key. The service may run meanwhile; what is stopped may be begun again."""
    target = _existing(_target())
    if not plain and not target.cipher.enabled:
        raise click.ClickException(
            "MEMORY_ENCRYPTION_KEYS is not set, so there is nothing to encrypt with; to decrypt everything for good, set it and use --plain"
        )
    found = asyncio.run(_reencrypted(target, plain=plain))
    already = f"{found.unchanged:,} were {'in the clear' if plain else 'under it'} already"
    click.echo(f"{found.changed:,} values were {'decrypted' if plain else 'encrypted with the newest key'}; {already}.")
    if found.unreadable:
        reasons = "; ".join(f"{count:,} times: {reason}" for reason, count in found.unreadable.most_common())
        raise click.ClickException(f"{found.unreadable.total():,} values could not be read and stay as they are. {reasons}")


@db.command()
@click.option("--user", required=True, help="Whose conversations to delete.")
@click.option("--tenant", default=TENANT, show_default=True, help="The tenant that the user belongs to.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(user: str, tenant: str, yes: bool) -> None:
    """Delete everything of a user for good, with all agents."""
    target = _existing(_target())
    if not yes:
        if not sys.stdin.isatty():
            raise click.ClickException("there is nobody to ask; to delete without a question, use --yes")
        click.confirm(f"Delete everything of the user {user!r} of the tenant {tenant!r} in {target.shown} for good?", abort=True)
    gone = asyncio.run(_erased(target, tenant, user))
    counts = f"{gone.sessions:,} conversations, {gone.messages:,} messages, {gone.runs:,} runs and {gone.summaries:,} summaries"
    click.echo(f"{counts} of the user {user!r} of the tenant {tenant!r} were deleted.")


def _target() -> Target:
    """What the settings name; raises ConfigError."""
    settings, faults = read_settings()
    address = _read(lambda: address_of(settings), "DATABASE_URL", "Correct it, or unset it for an SQLite file", faults)
    cipher = _read(lambda: cipher_of(settings), "MEMORY_ENCRYPTION_KEYS", "Make a key with: openssl rand -base64 32", faults)
    if address is None or cipher is None or faults:
        raise ConfigError(faults)
    return Target(settings, address, cipher, address.shown)


def _read(read: Callable[[], T], field: str, remedy: str, faults: list[Fault]) -> T | None:
    try:
        return read()
    except ValueError as error:
        faults.append(Fault(file="environment", field=field, problem=str(error).rstrip("."), remedy=remedy))
        return None


def _existing(target: Target) -> Target:
    """The target, if it is not an SQLite file that is not there: to look at that would make it."""
    if target.address.kind == "sqlite" and not target.address.path.exists():
        raise click.ClickException(
            f"there is no database {target.shown}; the service makes it at its start, as does: ai-agent-service db upgrade"
        )
    return target


@asynccontextmanager
async def _opened(target: Target, prepare: Callable[[DatabaseEngine], Awaitable[None]] | None = None) -> AsyncGenerator[Database, None]:
    """The database; one that cannot be used ends the command."""
    try:
        engine = engine_of(target.address, target.settings)
    except OSError as error:
        raise _unusable(target, str(error)) from error
    database = Database(engine, timeout=target.settings.database_timeout, prepare=prepare)
    try:
        await database.open()
        problem = database.problem
        if problem is not None:
            raise _unusable(target, problem)
        try:
            yield database
        except MemoryUnavailable as error:
            raise _unusable(target, database.problem or "all its connections are in use") from error
    finally:
        await database.close()


def _unusable(target: Target, problem: str) -> click.ClickException:
    return click.ClickException(f"{target.shown} cannot be used: {problem}")


async def _upgraded(target: Target) -> str | None:
    """The revision before the tables were made or changed."""
    before: str | None = None

    async def prepare(engine: DatabaseEngine) -> None:
        nonlocal before
        before = await upgrade(engine)

    async with _opened(target, prepare):
        return before


async def _revision(target: Target) -> str | None:
    async with _opened(target) as database:
        return await database.read(current_revision)


async def _checked(target: Target) -> None:
    async with _opened(target) as database:
        await _require_this_version(target, database)
        if (problem := await _problem_of_keys(target, database)) is not None:
            raise _unusable(target, problem)


async def _require_this_version(target: Target, database: Database) -> None:
    revision = await database.read(current_revision)
    if revision != HEAD:
        raise _unusable(target, f"its tables have the revision {revision or 'none'}, not {HEAD}; run: ai-agent-service db upgrade")


async def _problem_of_keys(target: Target, database: Database) -> str | None:
    try:
        await database.read(lambda connection: check_address_key(connection, target.cipher))
    except Undecryptable as error:
        return str(error)
    return None


async def _prepared(target: Target, *, force: bool) -> str | None:
    """Has a copy of a backup be as this version needs it; gives the revision that it had."""
    before = await _upgraded(target)
    async with _opened(target) as database:
        problem = await _problem_of_keys(target, database)
    if problem is not None and not force:
        raise _unusable(target, f"{problem} Set it, or repeat this with --force")
    return before


async def _refuse_if_used(target: Target) -> None:
    try:
        async with _opened(target) as database:
            living = await database.read(living_processes) if await database.read(current_revision) else ()
    except click.ClickException as error:
        unknown = "so it cannot be told whether a service uses it; stop that, and repeat this with --force"
        raise click.ClickException(f"{error.message}, {unknown}") from error
    if living:
        raise click.ClickException(f"{target.shown} is in use. {_stop(living)}, or repeat this with --force")


def _stop(living: Sequence[str]) -> str:
    return f"Stop the service first ({', '.join(living)}; one that was killed counts as running for 20 seconds)"


async def _reencrypted(target: Target, *, plain: bool) -> Reencrypted:
    async with _opened(target) as database:
        await _require_this_version(target, database)
        if plain and (living := await database.read(living_processes)):
            raise click.ClickException(f"{target.shown} is in use, and what is said meanwhile would be encrypted. {_stop(living)}")
        rows = await database.read(count_rows)
        label = "Decrypting" if plain else "Encrypting"
        with click.progressbar(length=rows, label=label, file=sys.stderr, hidden=not sys.stderr.isatty(), show_pos=True) as bar:
            return await reencrypt(database, target.cipher, Cipher(()) if plain else target.cipher, bar.update)


async def _erased(target: Target, tenant: str, user: str) -> Erased:
    async with _opened(target) as database:
        await _require_this_version(target, database)
        return await SqlConversations(Store(database, target.cipher, "")).erase(tenant, user)
