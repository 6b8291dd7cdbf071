"""What the commands on the database share: what the settings name, the opened database or one message why it cannot be used, its copy."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from ai_agent_service.config.settings import Settings, read_settings
from ai_agent_service.core.errors import ConfigError, Fault, MemoryUnavailable
from ai_agent_service.maintenance.postgres_backup import dump
from ai_agent_service.maintenance.sqlite_backup import Backup, back_up
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.opening import address_of, cipher_of, engine_of
from ai_agent_service.storage.url import Address

T = TypeVar("T")


class Target(msgspec.Struct, frozen=True):
    """A database, by default that of the settings; `shown` is what it is called in messages."""

    settings: Settings
    address: Address
    cipher: Cipher
    shown: str


def read_target(*checks: Callable[[Settings], list[Fault]]) -> Target:
    """What the settings name; raises ConfigError, for faults that `checks` find too."""
    settings, faults = read_settings()
    faults += [fault for check in checks for fault in check(settings)]
    address = _read(lambda: address_of(settings), "DATABASE_URL", "Correct it, or unset it for an SQLite file", faults)
    cipher = _read(lambda: cipher_of(settings), "MEMORY_ENCRYPTION_KEYS", "Make a key with: openssl rand -base64 32", faults)
    if address is None or cipher is None or faults:
        raise ConfigError(faults)
    return Target(settings, address, cipher, address.shown)


def existing(target: Target) -> Target:
    """The target, if it is not an SQLite file that is not there: to look at that would make it."""
    if target.address.kind == "sqlite" and not target.address.path.exists():
        raise click.ClickException(
            f"there is no database {target.shown}; the service makes it at its start, as does: ai-agent-service db upgrade"
        )
    return target


def backed_up(target: Target, file: Path, *, force: bool = False) -> Backup:
    """What the copy of the database holds that was made in `file`; raises BackupFailed."""
    if target.address.kind == "sqlite":
        return back_up(target.address.path, file, force=force)
    return dump(target.address, file, timeout=target.settings.database_timeout, force=force)


@asynccontextmanager
async def opened(target: Target, prepare: Callable[[DatabaseEngine], Awaitable[None]] | None = None) -> AsyncGenerator[Database, None]:
    """The database; one that cannot be used ends the command."""
    try:
        engine = engine_of(target.address, target.settings)
    except OSError as error:
        raise unusable(target, str(error)) from error
    database = Database(engine, timeout=target.settings.database_timeout, prepare=prepare)
    try:
        await database.open()
        problem = database.problem
        if problem is not None:
            raise unusable(target, problem)
        try:
            yield database
        except MemoryUnavailable as error:
            raise unusable(target, database.problem or "all its connections are in use") from error
    finally:
        await database.close()


def unusable(target: Target, problem: str) -> click.ClickException:
    """The error that ends a command whose database cannot be used because of `problem`."""
    return click.ClickException(f"{target.shown} cannot be used: {problem}")


def _read(read: Callable[[], T], field: str, remedy: str, faults: list[Fault]) -> T | None:
    try:
        return read()
    except ValueError as error:
        faults.append(Fault(file="environment", field=field, problem=str(error).rstrip("."), remedy=remedy))
        return None
