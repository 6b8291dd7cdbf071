"""What the commands on the database share: what the settings name, the opened database or one
message why it cannot be used, its copy."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from ai_agent_service.config.settings import Settings, read_settings
from ai_agent_service.core.errors import ConfigError, Fault, MemoryUnavailableError
from ai_agent_service.maintenance.postgres_backup import dump
from ai_agent_service.maintenance.sqlite_backup import Backup, back_up
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.engine import DatabaseEngine
from ai_agent_service.storage.opening import build_cipher, build_database_url, build_engine
from ai_agent_service.storage.url import DatabaseUrl

T = TypeVar("T")


class DatabaseTarget(msgspec.Struct, frozen=True):
    """A database, by default that of the settings; `shown` is what it is called in messages."""

    settings: Settings
    address: DatabaseUrl
    cipher: Cipher
    shown: str


def read_target(*checks: Callable[[Settings], list[Fault]]) -> DatabaseTarget:
    """What the settings name; raises ConfigError, for faults that `checks` find too."""
    settings, faults = read_settings()
    faults += [fault for check in checks for fault in check(settings)]
    address = _read_setting(
        lambda: build_database_url(settings),
        "DATABASE_URL",
        "Correct it, or unset it for an SQLite file",
        faults,
    )
    cipher = _read_setting(
        lambda: build_cipher(settings),
        "MEMORY_ENCRYPTION_KEYS",
        "Make a key with: openssl rand -base64 32",
        faults,
    )
    if address is None or cipher is None or faults:
        raise ConfigError(faults)
    return DatabaseTarget(settings, address, cipher, address.redacted)


def require_existing(target: DatabaseTarget) -> DatabaseTarget:
    """The target, if it is not an SQLite file that is not there: to look at that would make it."""
    if target.address.kind == "sqlite" and not target.address.path.exists():
        raise click.ClickException(
            f"there is no database {target.shown}; the service makes it at its start, as does:"
            " ai-agent-service db upgrade"
        )
    return target


def back_up_target(target: DatabaseTarget, file: Path, *, force: bool = False) -> Backup:
    """What the copy of the database holds that was made in `file`; raises BackupError."""
    if target.address.kind == "sqlite":
        return back_up(target.address.path, file, force=force)
    return dump(target.address, file, timeout=target.settings.database_timeout, force=force)


@asynccontextmanager
async def open_target(
    target: DatabaseTarget, prepare: Callable[[DatabaseEngine], Awaitable[None]] | None = None
) -> AsyncGenerator[Database, None]:
    """The database; one that cannot be used ends the command."""
    try:
        engine = build_engine(target.address, target.settings)
    except OSError as error:
        raise build_unusable_error(target, str(error)) from error
    database = Database(engine, timeout=target.settings.database_timeout, prepare=prepare)
    try:
        await database.open()
        problem = database.problem
        if problem is not None:
            raise build_unusable_error(target, problem)
        try:
            yield database
        except MemoryUnavailableError as error:
            raise build_unusable_error(
                target, database.problem or "all its connections are in use"
            ) from error
    finally:
        await database.close()


def build_unusable_error(target: DatabaseTarget, problem: str) -> click.ClickException:
    """The error that ends a command whose database cannot be used because of `problem`."""
    return click.ClickException(f"{target.shown} cannot be used: {problem}")


def _read_setting(read: Callable[[], T], field: str, remedy: str, faults: list[Fault]) -> T | None:
    try:
        return read()
    except ValueError as error:
        faults.append(Fault.in_environment(field, str(error).rstrip("."), remedy))
        return None
