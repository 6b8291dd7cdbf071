"""ai-agent-service db: the operator's commands on the database of conversations."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from app.commands import Target, existing, opened, read_target, unusable
from app.memory.base import Erased
from app.memory.conversations import SqlConversations
from app.memory.reencryption import Reencrypted, check_address_key, count_rows, living_processes, reencrypt
from app.memory.store import Store
from app.observability.logging import configure_logging
from app.storage.address import Address
from app.storage.backup import BackupFailed, back_up, dump_command, load_command, put_in_place, staged
from app.storage.cipher import Cipher, Undecryptable
from app.storage.database import Database
from app.storage.engines import DatabaseEngine
from app.storage.migrate import HEAD, current_revision, upgrade

TENANT = "local"


@click.group()
def db() -> None:
    """Look after the database of conversations."""
    configure_logging("CRITICAL")


@db.command("upgrade")
def upgrade_tables() -> None:
    """Make the tables, or change them to those of this version."""
    target = read_target()
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
    target = existing(read_target())
    revision = asyncio.run(_revision(target))
    click.echo(f"revision {revision or 'none'}, {target.address.kind}, {target.shown}")


@db.command()
def check() -> None:
    """Tell whether the service can use the database. If it cannot, tell why and exit with 1."""
    target = existing(read_target())
    asyncio.run(_checked(target))
    click.echo(f"{target.shown} can be used; its tables have the revision {HEAD}.")


@db.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Write over FILE if it is there.")
def backup(file: Path, force: bool) -> None:
    """Copy the SQLite database to FILE while the service runs."""
    target = existing(read_target())
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
    target = read_target()
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
    target = existing(read_target())
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
    target = existing(read_target())
    if not yes:
        if not sys.stdin.isatty():
            raise click.ClickException("there is nobody to ask; to delete without a question, use --yes")
        click.confirm(f"Delete everything of the user {user!r} of the tenant {tenant!r} in {target.shown} for good?", abort=True)
    gone = asyncio.run(_erased(target, tenant, user))
    counts = f"{gone.sessions:,} conversations, {gone.messages:,} messages, {gone.runs:,} runs and {gone.summaries:,} summaries"
    click.echo(f"{counts} of the user {user!r} of the tenant {tenant!r} were deleted.")


async def _upgraded(target: Target) -> str | None:
    """The revision before the tables were made or changed."""
    before: str | None = None

    async def prepare(engine: DatabaseEngine) -> None:
        nonlocal before
        before = await upgrade(engine)

    async with opened(target, prepare):
        return before


async def _revision(target: Target) -> str | None:
    async with opened(target) as database:
        return await database.read(current_revision)


async def _checked(target: Target) -> None:
    async with opened(target) as database:
        await _require_this_version(target, database)
        if (problem := await _problem_of_keys(target, database)) is not None:
            raise unusable(target, problem)


async def _require_this_version(target: Target, database: Database) -> None:
    revision = await database.read(current_revision)
    if revision != HEAD:
        raise unusable(target, f"its tables have the revision {revision or 'none'}, not {HEAD}; run: ai-agent-service db upgrade")


async def _problem_of_keys(target: Target, database: Database) -> str | None:
    try:
        await database.read(lambda connection: check_address_key(connection, target.cipher))
    except Undecryptable as error:
        return str(error)
    return None


async def _prepared(target: Target, *, force: bool) -> str | None:
    """Has a copy of a backup be as this version needs it; gives the revision that it had."""
    before = await _upgraded(target)
    async with opened(target) as database:
        problem = await _problem_of_keys(target, database)
    if problem is not None and not force:
        raise unusable(target, f"{problem} Set it, or repeat this with --force")
    return before


async def _refuse_if_used(target: Target) -> None:
    try:
        async with opened(target) as database:
            living = await database.read(living_processes) if await database.read(current_revision) else ()
    except click.ClickException as error:
        unknown = "so it cannot be told whether a service uses it; stop that, and repeat this with --force"
        raise click.ClickException(f"{error.message}, {unknown}") from error
    if living:
        raise click.ClickException(f"{target.shown} is in use. {_stop(living)}, or repeat this with --force")


def _stop(living: Sequence[str]) -> str:
    return f"Stop the service first ({', '.join(living)}; one that was killed counts as running for 20 seconds)"


async def _reencrypted(target: Target, *, plain: bool) -> Reencrypted:
    async with opened(target) as database:
        await _require_this_version(target, database)
        if plain and (living := await database.read(living_processes)):
            raise click.ClickException(f"{target.shown} is in use, and what is said meanwhile would be encrypted. {_stop(living)}")
        rows = await database.read(count_rows)
        label = "Decrypting" if plain else "Encrypting"
        with click.progressbar(length=rows, label=label, file=sys.stderr, hidden=not sys.stderr.isatty(), show_pos=True) as bar:
            return await reencrypt(database, target.cipher, Cipher(()) if plain else target.cipher, bar.update)


async def _erased(target: Target, tenant: str, user: str) -> Erased:
    async with opened(target) as database:
        await _require_this_version(target, database)
        return await SqlConversations(Store(database, target.cipher, "")).erase(tenant, user)
