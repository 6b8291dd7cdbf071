"""ai-agent-service keys: the operator's commands on the keys that callers have."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, get_args

import click
import msgspec

from ai_agent_service.auth.keys.ring import find_key_faults
from ai_agent_service.auth.keys.store import (
    ROTATION_GRACE,
    KeyStore,
    KeyStoreError,
    NewSecret,
    StoredKey,
)
from ai_agent_service.auth.principal import DEFAULT_SCOPES, SCOPES, Client, Limits, Rights, Scope
from ai_agent_service.cli.database_target import (
    build_unusable_error,
    open_target,
    read_target,
    require_existing,
)
from ai_agent_service.cli.output import format_table
from ai_agent_service.cli.streams import echo
from ai_agent_service.config.json_files import suggest_name
from ai_agent_service.core.errors import ConfigError
from ai_agent_service.observability.audit import configure_audit
from ai_agent_service.observability.logging import configure_logging
from ai_agent_service.runtime.configuration import load
from ai_agent_service.storage.encryption import DecryptionError
from ai_agent_service.storage.opening import prepare_tables

LIMIT = click.IntRange(1, 2_000_000_000)

KEY = click.argument("key", metavar="KEY")

T = TypeVar("T")
_COLUMNS = (
    *("ID", "NAME", "STATE", "TENANT", "SCOPES", "AGENTS", "CLIENT", "LIMITS"),
    *("CREATED", "EXPIRES", "LAST USED"),
)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"(\d{1,9})([smhd])")


class Duration(click.ParamType):
    """A time such as 90d, 12h, 30m or 3600s; `zero` allows 0."""

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """The time that `value` is."""
        if isinstance(value, timedelta):
            return value
        if self._zero and value == "0":
            return timedelta()
        found = _DURATION.fullmatch(str(value))
        try:
            span = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found is not None else None
        except OverflowError:
            self.fail(f"{value} is too long; a century is 36500d.", param, ctx)
        if span is None or not (span or self._zero):
            self.fail(f"{value!r} is no time: 90d, 12h, 30m and 3600s are.", param, ctx)
        return span


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke the keys that callers need. KEY is a key's id, or the name of a
    live key."""
    configure_logging("CRITICAL")


@keys.command()
@click.option(
    "--name", required=True, help="What the key is called; no two live keys have one name."
)
@click.option(
    "--agents", help="The agents that it is for, separated by commas; by default all of them."
)
@click.option(
    "--scopes",
    help=(
        f"What it may do, separated by commas, of {', '.join(sorted(SCOPES))}; by default all but"
        " admin."
    ),
)
@click.option(
    "--expires",
    type=Duration(),
    help="How long it is accepted, such as 90d; by default until it is revoked.",
)
@click.option(
    "--tenant",
    help="Whose conversations it reaches: the id of a key that it replaces; by default its own.",
)
@click.option("--client", type=click.Choice(get_args(Client)), help="The client that uses it.")
@click.option("--rpm", type=LIMIT, help="Requests that it may ask in a minute.")
@click.option("--tpm", type=LIMIT, help="Tokens that it may use in a minute.")
@click.option("--parallel", type=LIMIT, help="Runs that it may have at once.")
@click.option("--user-rpm", type=LIMIT, help="As --rpm, for each user of the key.")
@click.option("--user-tpm", type=LIMIT, help="As --tpm, for each user of the key.")
@click.option("--user-parallel", type=LIMIT, help="As --parallel, for each user of the key.")
def create(
    name: str,
    agents: str | None,
    scopes: str | None,
    expires: timedelta | None,
    tenant: str | None,
    client: Client | None,
    **limits: int | None,
) -> None:
    """Make a key and print it. It is shown this once."""
    rights = Rights(
        scopes=_parse_scopes(scopes),
        agents=_parse_agents(agents),
        client=client,
        limits=Limits(limits["rpm"], limits["tpm"], limits["parallel"]),
        user_limits=Limits(limits["user_rpm"], limits["user_tpm"], limits["user_parallel"]),
    )
    made = _run_with_store(
        lambda store: store.create(name, rights, tenant=tenant, expires_in=expires),
        makes_tables=True,
    )
    _echo_secret(made, "was made")


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_keys(as_json: bool) -> None:
    """Show all keys, without what is secret of them."""

    async def read_keys(store: KeyStore) -> tuple[tuple[StoredKey, ...], str | None]:
        return await store.list(), await store.find_problem()

    found, problem = _run_with_store(read_keys)
    if as_json:
        listed = msgspec.json.encode([_to_json(each) for each in found], order="sorted")
        echo(msgspec.json.format(listed, indent=2).decode())
    elif found:
        echo(format_table([_COLUMNS, *map(_format_row, found)]))
    else:
        echo("There are no keys. To make one: ai-agent-service keys create --name NAME")
    if problem is not None:
        echo(f"warning: {problem}.", err=True)


@keys.command()
@KEY
def revoke(key: str) -> None:
    """Have a key refused, everywhere within seconds and for good."""
    revoked = _run_with_store(lambda store: store.revoke(key))
    echo(f"{_describe_key(revoked)} is revoked.")


@keys.command()
@KEY
@click.option(
    "--grace",
    type=Duration(zero=True),
    default=f"{ROTATION_GRACE.days * 24}h",
    show_default=True,
    help="How long the old secret works beside the new one; 0 ends it at once.",
)
def rotate(key: str, grace: timedelta) -> None:
    """Make a new secret for a key and print the key with it. It is shown this once."""
    made = _run_with_store(lambda store: store.rotate(key, grace=grace))
    until = made.stored.previous_until
    _echo_secret(
        made,
        "was rotated; the old secret works"
        f" {f'until {_format_time(until)}' if until else 'no longer'}",
    )


def _run_with_store(work: Callable[[KeyStore], Awaitable[T]], *, makes_tables: bool = False) -> T:
    """What `work` gives on the keys of the database that the settings name."""
    target = read_target(find_key_faults)
    settings = target.settings
    if not (makes_tables and settings.database_migrate):
        require_existing(target)
    if settings.audit_log_file is not None:
        configure_audit(settings.audit_log_file)
    pepper = settings.api_key_pepper

    async def run() -> T:
        async with open_target(
            target, lambda engine: prepare_tables(engine, migrate=settings.database_migrate)
        ) as database:
            store = KeyStore(
                database,
                pepper=pepper.get_secret_value() if pepper is not None else None,
                cipher=target.cipher,
            )
            return await work(store)

    try:
        return asyncio.run(run())
    except KeyStoreError as error:
        raise click.UsageError(f"{error}.") from error
    except DecryptionError as error:
        raise build_unusable_error(target, str(error)) from error


def _parse_scopes(text: str | None) -> frozenset[Scope]:
    if text is None:
        return DEFAULT_SCOPES
    known: dict[str, Scope] = {scope: scope for scope in SCOPES}
    names = _parse_names(text, "--scopes")
    _check_names(names, known, "scope")
    return frozenset(known[name] for name in names)


def _parse_agents(text: str | None) -> frozenset[str] | None:
    """The agents that are named; they are those of the configuration, if that has no faults."""
    if text is None:
        return None
    names = _parse_names(text, "--agents")
    try:
        _check_names(names, [agent.agent_id for agent in load().agents], "agent")
    except ConfigError:
        echo(
            "note: the configuration has faults, so it is not known whether these agents are"
            " there.",
            err=True,
        )
    return frozenset(names)


def _parse_names(text: str, option: str) -> list[str]:
    names = [name for item in text.split(",") if (name := item.strip())]
    if not names:
        raise click.BadParameter("it names none.", param_hint=option)
    return names


def _check_names(names: Iterable[str], known: Collection[str], noun: str) -> None:
    for name in names:
        if name not in known:
            problem = f"{name!r} is no {noun}. {suggest_name(name, known)}"
            raise click.BadParameter(problem, param_hint=f"--{noun}s")


def _echo_secret(made: NewSecret, what: str) -> None:
    """The key alone on standard output, so that a script can take it, and what it is for beside."""
    key = made.stored.key
    agents = "all agents" if key.agents is None else f"the agents {', '.join(sorted(key.agents))}"
    expires = (
        f"until {_format_time(made.stored.expires_at)}"
        if made.stored.expires_at
        else "until it is revoked"
    )
    echo(
        f"{_describe_key(made.stored)} {what}. It is for {agents}, with the scopes"
        f" {', '.join(sorted(key.scopes))}, {expires}.",
        err=True,
    )
    echo("It is shown this once; keep it where its user reads it:", err=True)
    echo(made.text)


def _describe_key(stored: StoredKey) -> str:
    return f"The key {stored.key.name!r} ({stored.key.key_id})"


def _to_json(stored: StoredKey) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(stored, order="sorted")
    return {**msgspec.structs.asdict(stored.key), **shown.pop("key"), **shown}


def _format_row(stored: StoredKey) -> tuple[str, ...]:
    key = stored.key
    limits = _format_limits(key.limits)
    each = _format_limits(key.user_limits)
    return (
        key.key_id,
        key.name,
        (
            f"rotating until {_format_time(stored.previous_until)}"
            if stored.state == "rotating"
            else stored.state
        ),
        key.tenant,
        ",".join(sorted(key.scopes)),
        "all" if key.agents is None else ",".join(sorted(key.agents)),
        key.client or "-",
        "; ".join([*([limits] if limits else []), *([f"each user {each}"] if each else [])]) or "-",
        _format_time(stored.created_at),
        _format_time(stored.expires_at),
        _format_time(stored.last_used_at),
    )


def _format_limits(limits: Limits) -> str:
    parts = ((limits.requests, "rpm"), (limits.tokens, "tpm"), (limits.parallel, "parallel"))
    return ", ".join(f"{number} {unit}" for number, unit in parts if number is not None)


def _format_time(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}Z"
