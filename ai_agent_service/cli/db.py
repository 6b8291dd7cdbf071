"""ai-agent-service db: the operator's commands on the database of conversations."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from ai_agent_service.cli.database_target import (
    DatabaseTarget,
    back_up_target,
    build_unusable_error,
    open_target,
    read_target,
    require_existing,
)
from ai_agent_service.cli.streams import echo
from ai_agent_service.core.context import LOCAL_TENANT
from ai_agent_service.maintenance.failover import PromotionError, promote
from ai_agent_service.maintenance.postgres_backup import read_dump, restore_dump, strip_password
from ai_agent_service.maintenance.reencryption import (
    ReencryptionCounts,
    check_hash_key,
    count_rows,
    list_live_processes,
    read_hash_key,
    reencrypt,
)
from ai_agent_service.maintenance.sqlite_backup import (
    BackupError,
    replace_database,
    stage_copy,
    wrap_errors,
)
from ai_agent_service.memory.base import ErasureCounts
from ai_agent_service.memory.conversations import SqlConversations
from ai_agent_service.memory.store import HASH_KEY_NAME, Store
from ai_agent_service.observability.logging import configure_logging
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher, DecryptionError
from ai_agent_service.storage.engine import DatabaseEngine, T, Work
from ai_agent_service.storage.migrate import (
    HEAD_REVISION,
    NewerSchemaError,
    find_own_tables,
    read_revision,
    upgrade,
)
from ai_agent_service.storage.url import DatabaseUrl, parse_database_url


@click.group()
def db() -> None:
    """Look after the database of conversations."""
    configure_logging("CRITICAL")


@db.command("upgrade")
def upgrade_tables() -> None:
    """Make the tables, or change them to those of this version."""
    target = read_target()
    before = asyncio.run(_upgrade_schema(target))
    if before == HEAD_REVISION:
        echo(f"The tables of {target.shown} have the revision {HEAD_REVISION} already.")
    elif before is None:
        echo(f"The tables of {target.shown} were made, with the revision {HEAD_REVISION}.")
    else:
        echo(
            f"The tables of {target.shown} were changed from the revision {before} to"
            f" {HEAD_REVISION}."
        )


@db.command()
def current() -> None:
    """Show the tables' revision, the kind of database and its address."""
    target = require_existing(read_target())
    revision = _read(target, read_revision)
    echo(f"revision {revision or 'none'}, {target.address.kind}, {target.shown}")


@db.command()
def check() -> None:
    """Tell whether the service can use the database. If it cannot, tell why and exit with 1."""
    target = require_existing(read_target())
    asyncio.run(_check_usable(target))
    echo(f"{target.shown} can be used; its tables have the revision {HEAD_REVISION}.")


@db.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Write over FILE if it is there.")
def backup(file: Path, force: bool) -> None:
    """Copy the database to FILE while the service runs: an SQLite file as it is, PostgreSQL by its
    pg_dump."""
    target = require_existing(read_target())
    try:
        made = back_up_target(target, file, force=force)
    except BackupError as error:
        raise click.ClickException(str(error)) from error
    echo(f"{target.shown} was backed up to {file}: {made}.")


@db.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--force",
    is_flag=True,
    help=(
        "Also while a service uses the database, without the key that FILE needs, or if what is"
        " there cannot be kept."
    ),
)
def restore(file: Path, force: bool) -> None:
    """Put a backup in the database's place. What was there before is kept: beside the SQLite file,
    or dumped to DATA_DIR."""
    target = read_target()
    try:
        before, kept = (_restore_file if target.address.kind == "sqlite" else _restore_dump)(
            target, file, force=force
        )
    except BackupError as error:
        raise click.ClickException(str(error)) from error
    changed = (
        ""
        if before == HEAD_REVISION
        else f", its tables changed from the revision {before} to {HEAD_REVISION}"
    )
    note = f" What was there before is in {kept}." if kept else ""
    restart = " Restart the service." if force else ""
    echo(f"{target.shown} was restored from {file}{changed}.{note}{restart}")


def _restore_file(
    target: DatabaseTarget, file: Path, *, force: bool
) -> tuple[str | None, Path | None]:
    """The revision that the backup had, and the file that keeps what was there before."""
    path = target.address.path
    with stage_copy(file, path) as copy:
        of_file = msgspec.structs.replace(
            target, address=DatabaseUrl("sqlite", copy.as_posix()), shown=str(file)
        )
        before = asyncio.run(_prepare_copy(of_file, force=force))
        if path.exists() and not force:
            asyncio.run(_refuse_if_used(target))
        return before, replace_database(copy, path)


def _restore_dump(
    target: DatabaseTarget, file: Path, *, force: bool
) -> tuple[str | None, Path | None]:
    """The revision that the dump had, and the dump that keeps what was there before."""
    found = read_dump(file)
    of_file = msgspec.structs.replace(target, shown=str(file))
    if found.revision > HEAD_REVISION:
        raise build_unusable_error(of_file, str(NewerSchemaError(found.revision)))
    try:
        check_hash_key(found.secrets.get(HASH_KEY_NAME), target.cipher)
    except DecryptionError as error:
        if not force:
            raise build_unusable_error(
                of_file, f"{error} Set it, or repeat this with --force"
            ) from error
    if not force:
        asyncio.run(_refuse_if_used(target))
    kept = _dump_existing(target, force=force)
    restore_dump(target.address, file, timeout=target.settings.database_timeout)
    asyncio.run(_upgrade_schema(target))
    return found.revision, kept


def _dump_existing(target: DatabaseTarget, *, force: bool) -> Path | None:
    """A dump of what is in the database, if there is anything of ours; with `force` also None if it
    cannot be made, which is told."""
    try:
        if _read(target, read_revision) is None:
            if theirs := _read(target, find_own_tables):
                raise click.ClickException(
                    f"{target.shown} was not replaced: its tables {', '.join(theirs)} are in the"
                    " way, and seem to be those of another program; name another database, or"
                    " delete them by --force"
                )
            return None
        folder = target.settings.data_dir
        with wrap_errors(f"{target.shown} was not replaced, for what is there cannot be kept"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = folder / f"before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.sql"
            back_up_target(target, kept)
            return kept
    except (BackupError, click.ClickException) as error:
        if not force:
            raise
        echo(f"What is there is not kept: {error}", err=True)
        return None


@db.command("promote")
@click.option(
    "--force", is_flag=True, help="Also while another server takes writes, or answers and may."
)
def promote_replica(force: bool) -> None:
    """Make the PostgreSQL replica the primary once the primary is lost: of those in DATABASE_URL
    and DATABASE_REPLICA_URL that answer, the one that has most."""
    target = read_target()
    if target.address.kind != "postgresql":
        raise click.ClickException(f"{target.shown} has no replica: only a PostgreSQL server has")
    replica = target.settings.database_replica_url
    addresses = [
        target.address,
        *([] if replica is None else [parse_database_url(replica.get_secret_value())]),
    ]
    try:
        done = asyncio.run(
            promote(addresses, timeout=target.settings.database_timeout, force=force)
        )
    except PromotionError as error:
        raise click.ClickException(str(error)) from error
    name = done.server.name
    if any(name == server.hosts for server in target.address.servers):
        echo(
            f"{name} is the primary now. Services whose DATABASE_URL names it find it by"
            " themselves."
        )
    else:
        # A socket has no place among hosts.
        both = strip_password(
            done.server.address,
            "" if "/" in name + target.address.hosts else f"{name},{target.address.hosts}",
        )
        echo(
            f"{name} is the primary now. Set DATABASE_URL={both} (and the password) and restart the"
            " service."
        )
    for server in done.away:
        echo(
            f"{server.name} did not answer. It must not take writes when it comes back: make it a"
            f" replica of {name} first."
        )
    if done.waits_for:
        echo(
            f"{name} waits with each commit for a replica (synchronous_standby_names ="
            f" {done.waits_for!r}), and none follows it. Until one does, run there: ALTER SYSTEM"
            " SET synchronous_standby_names = ''; SELECT pg_reload_conf();"
        )


@db.command("reencrypt")
@click.option(
    "--plain",
    is_flag=True,
    help="Decrypt everything for good, with the keys still set; the service must not run.",
)
def reencrypt_values(plain: bool) -> None:
    """Encrypt everything with the newest key. The service may run meanwhile; what is stopped may be
    begun again."""
    target = require_existing(read_target())
    if not plain and not target.cipher.is_enabled:
        raise click.ClickException(
            "MEMORY_ENCRYPTION_KEYS is not set, so there is nothing to encrypt with; to decrypt"
            " everything for good, set it and use --plain"
        )
    found = asyncio.run(_reencrypt_target(target, plain=plain))
    already = f"{found.unchanged:,} were {'in the clear' if plain else 'under it'} already"
    echo(
        f"{found.changed:,} values were"
        f" {'decrypted' if plain else 'encrypted with the newest key'}; {already}."
    )
    if found.unreadable:
        reasons = "; ".join(
            f"{count:,} times: {reason}" for reason, count in found.unreadable.most_common()
        )
        raise click.ClickException(
            f"{found.unreadable.total():,} values could not be read and stay as they are. {reasons}"
        )


@db.command()
@click.option("--user", required=True, help="Whose conversations to delete.")
@click.option(
    "--tenant",
    default=LOCAL_TENANT,
    show_default=True,
    help="The tenant that the user belongs to.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(user: str, tenant: str, yes: bool) -> None:
    """Delete everything of a user for good, with all agents."""
    target = require_existing(read_target())
    if not yes:
        if not sys.stdin.isatty():
            raise click.ClickException(
                "there is nobody to ask; to delete without a question, use --yes"
            )
        click.confirm(
            f"Delete everything of the user {user!r} of the tenant {tenant!r} in {target.shown} for"
            " good?",
            abort=True,
        )
    gone = asyncio.run(_erase_user(target, tenant, user))
    counts = (
        f"{gone.sessions:,} conversations, {gone.messages:,} messages, {gone.runs:,} runs and"
        f" {gone.summaries:,} summaries"
    )
    echo(f"{counts} of the user {user!r} of the tenant {tenant!r} were deleted.")


async def _upgrade_schema(target: DatabaseTarget) -> str | None:
    """The revision before the tables were made or changed."""
    before: str | None = None

    async def prepare(engine: DatabaseEngine) -> None:
        nonlocal before
        before = await upgrade(engine)

    async with open_target(target, prepare):
        return before


def _read(target: DatabaseTarget, work: Work[T]) -> T:
    """Return the result of `work` on the database."""

    async def run() -> T:
        async with open_target(target) as database:
            return await database.read(work)

    return asyncio.run(run())


async def _check_usable(target: DatabaseTarget) -> None:
    async with open_target(target) as database:
        await _require_this_version(target, database)
        if (problem := await _find_key_problem(target, database)) is not None:
            raise build_unusable_error(target, problem)


async def _require_this_version(target: DatabaseTarget, database: Database) -> None:
    revision = await database.read(read_revision)
    if revision is not None and revision > HEAD_REVISION:
        raise build_unusable_error(target, str(NewerSchemaError(revision)))
    if revision != HEAD_REVISION:
        raise build_unusable_error(
            target,
            f"its tables have the revision {revision or 'none'}, not {HEAD_REVISION}; run:"
            " ai-agent-service db upgrade",
        )


async def _find_key_problem(target: DatabaseTarget, database: Database) -> str | None:
    try:
        check_hash_key(await database.read(read_hash_key), target.cipher)
    except DecryptionError as error:
        return str(error)
    return None


async def _prepare_copy(target: DatabaseTarget, *, force: bool) -> str | None:
    """Has a copy of a backup be as this version needs it; gives the revision that it had."""
    before = await _upgrade_schema(target)
    async with open_target(target) as database:
        problem = await _find_key_problem(target, database)
    if problem is not None and not force:
        raise build_unusable_error(target, f"{problem} Set it, or repeat this with --force")
    return before


async def _refuse_if_used(target: DatabaseTarget) -> None:
    try:
        async with open_target(target) as database:
            living = (
                await database.read(list_live_processes)
                if await database.read(read_revision)
                else ()
            )
    except click.ClickException as error:
        unknown = (
            "so it cannot be told whether a service uses it; stop that, and repeat this with"
            " --force"
        )
        raise click.ClickException(f"{error.message}, {unknown}") from error
    if living:
        raise click.ClickException(
            f"{target.shown} is in use. {_format_stop_hint(living)}, or repeat this with --force"
        )


def _format_stop_hint(living: Sequence[str]) -> str:
    return (
        f"Stop the service first ({', '.join(living)}; one that was killed counts as running for 20"
        " seconds)"
    )


async def _reencrypt_target(target: DatabaseTarget, *, plain: bool) -> ReencryptionCounts:
    async with open_target(target) as database:
        await _require_this_version(target, database)
        if plain and (living := await database.read(list_live_processes)):
            raise click.ClickException(
                f"{target.shown} is in use, and what is said meanwhile would be encrypted."
                f" {_format_stop_hint(living)}"
            )
        rows = await database.read(count_rows)
        label = "Decrypting" if plain else "Encrypting"
        with click.progressbar(
            length=rows, label=label, file=sys.stderr, hidden=not sys.stderr.isatty(), show_pos=True
        ) as bar:
            return await reencrypt(
                database, target.cipher, Cipher(()) if plain else target.cipher, bar.update
            )


async def _erase_user(target: DatabaseTarget, tenant: str, user: str) -> ErasureCounts:
    async with open_target(target) as database:
        await _require_this_version(target, database)
        return await SqlConversations(Store(database, target.cipher, "")).erase(tenant, user)
