"""ai-agent-service serve | backup | chat | check | db | eval | init | keys | reload: the commands of the terminal."""

import asyncio
import importlib
import logging
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import click
import msgspec
import uvicorn

from ai_agent_service import __version__
from ai_agent_service.auth.access import Access
from ai_agent_service.cli.database_target import table
from ai_agent_service.config.json_files import nearest
from ai_agent_service.config.server_definition import Servers
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import ConfigError, Fault, UpstreamError
from ai_agent_service.mcp.connection import ServerStatus
from ai_agent_service.mcp.supervisor import open_servers
from ai_agent_service.observability.logging import configure_logging, writes_json
from ai_agent_service.providers.demo import Demo
from ai_agent_service.providers.fallback import Fallback, Other
from ai_agent_service.runtime.service import Configuration, Service, database_keys, load, open_service
from ai_agent_service.server.application import METRICS_FOLDER, configure_logs, create_app, settle_memory
from ai_agent_service.server.http1 import BoundedProtocol
from ai_agent_service.server.process import LAST_WORDS_SECONDS, Patience, Server, Workers

EXIT_CONFIGURATION = 2
CONNECT_GRACE = 5.0
"""How much longer than MCP_CONNECT_TIMEOUT `check --connect` waits for the servers."""

MANY_TOOLS = 128
"""What OpenAI takes in one request."""

STARTER_NOTE = (
    "this folder has no agent_config.json, so the agents that come with the program are served. To have them as files to edit:"
    " ai-agent-service init"
)


class Commands(click.Group):
    """A group some of whose commands are imported only when they are called, for what they need takes time to load."""

    LAZY: ClassVar = {
        "backup": "ai_agent_service.cli.backup:backup",
        "chat": "ai_agent_service.cli.chat:chat",
        "db": "ai_agent_service.cli.db:db",
        "eval": "ai_agent_service.cli.eval:evaluate",
        "init": "ai_agent_service.cli.init:init",
        "keys": "ai_agent_service.cli.keys:keys",
        "reload": "ai_agent_service.cli.reload:reload",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands' names."""
        return sorted([*super().list_commands(ctx), *self.LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in self.LAZY:
            return super().get_command(ctx, cmd_name)
        module, name = self.LAZY[cmd_name].split(":")
        return cast(click.Command, getattr(importlib.import_module(module), name))


@click.group(cls=Commands)
@click.version_option(__version__)
def cli() -> None:
    """Agents that appear as models to any OpenAI client."""


@cli.command()
@click.option("--host", help="The address to listen on (HOST).")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port to listen on (PORT).")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that share the port.")
@click.option("--debug", is_flag=True, help="Log all that is said to models, by them and by tools (LOG_LEVEL=DEBUG).")
def serve(host: str | None, port: int | None, workers: int, debug: bool) -> None:
    """Start the service."""
    given: dict[str, Any] = {"host": host, "port": port, "log_level": "DEBUG" if debug else None}
    overrides = {name: value for name, value in given.items() if value is not None}
    configuration = load(**overrides)
    settings = configuration.settings
    configure_logs(configuration, is_one_of_several=workers > 1)
    _refuse_without_keys(settings)
    listening = _listening(settings)
    config = uvicorn.Config(
        "ai_agent_service.server.application:worker_app" if workers > 1 else create_app(configuration),
        factory=workers > 1,
        workers=workers,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        http=BoundedProtocol,
        ws="none",
        proxy_headers=False,  # else callers on this machine could say where they are
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        ssl_context_factory=_tls if settings.tls_cert_file else None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=LAST_WORDS_SECONDS,
    )
    patience = Patience(settings.drain_seconds, settings.shutdown_timeout)
    if workers > 1:
        os.environ.update({name.upper(): str(value) for name, value in overrides.items()})  # for the workers, which read it anew
        if not configuration.files.is_starter:
            os.environ["AGENT_CONFIG_FILE"] = str(configuration.files.agents)  # a worker of later takes none in its place
        is_open = settings.is_local and settings.api_keys is None and asyncio.run(database_keys(settings)) == "none"
        is_open = is_open or settings.allow_unauthenticated
        welcome = partial(_tell_ready, configuration, listening, _own_notes(configuration), is_open=is_open)
        with tempfile.TemporaryDirectory(prefix="ai-agent-service-metrics-", ignore_cleanup_errors=True) as folder:
            os.environ[METRICS_FOLDER] = folder
            code = Workers(config, listening, patience).run(welcome)
        sys.exit(code)
    server = Server(config, patience, partial(_welcomed, configuration, listening))
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(3)


@cli.command()
@click.option("--connect", is_flag=True, help="Start each MCP server too, and list its tools.")
def check(connect: bool) -> None:
    """Validate the whole configuration and show what it defines, without serving."""
    configuration = load()
    configure_logging("CRITICAL")
    rows, fallbacks, auto = asyncio.run(_agents_of(configuration))
    click.echo(table(rows))
    for line in fallbacks:
        click.echo(line)
    click.echo(f"\nAgents with the provider auto use: {auto}")
    definitions = configuration.servers.definitions
    if connect and definitions:
        click.echo(f"Starting {len(definitions)} MCP servers (up to {configuration.settings.mcp_connect_timeout:g} s) ...")
    statuses = asyncio.run(_connected(configuration)) if connect and definitions else ()
    if connect:
        _echo_servers(configuration, statuses)
    elif definitions:
        off = {each.server_label: each.off or each.not_installed(configuration.environment) for each in definitions}
        shown = (f"{label} (off: {why.rstrip('.')})" if why else label for label, why in off.items())
        click.echo(f"MCP servers: {', '.join(shown)}. To see whether they can be reached: check --connect")
    for warning in configuration.warnings:
        click.echo(f"warning: {warning}")
    count = len(configuration.agents)
    click.echo(f"{count} agent{'s' if count > 1 else ''} in {configuration.files.agents}: no faults.")
    if configuration.files.is_starter:
        click.echo(f"note: {STARTER_NOTE}")
    meant = {definition.server_label for definition in definitions if definition.off is None}
    failed = [status.label for status in statuses if status.label in meant and status.state != "ready"]
    if failed:
        click.echo(f"{len(failed)} of {len(definitions)} MCP servers cannot be used: {', '.join(failed)}.")
        sys.exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a configuration with faults ends it with code 2 and one readable message."""
    try:
        cli.main(arguments, prog_name="ai-agent-service", standalone_mode=True)
    except ConfigError as error:
        count = len(error.faults)
        print(f"The configuration has {count} fault{'s' if count > 1 else ''}:", file=sys.stderr)
        for fault in error.faults:
            print(f"  - {fault}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)


async def _welcomed(configuration: Configuration, listening: socket.socket, server: Server) -> None:
    """Says where to go once `server` is ready."""
    settle_memory()
    is_open = server.state.access.is_open
    notes = await _notes(configuration, server.state.service, server.state.access)
    _tell_ready(configuration, listening, notes, is_open=is_open)


def _own_notes(configuration: Configuration) -> list[str]:
    """What the operator should know of the files."""
    return [STARTER_NOTE] if configuration.files.is_starter else []


async def _notes(configuration: Configuration, service: Service, access: Access) -> list[str]:
    """What the operator should know at the start."""
    problems = await asyncio.gather(*(agent.problem() for agent in service.catalog))
    notes = _own_notes(configuration)
    notes += [f"{agent.agent_id} cannot answer: {problem}" for agent, problem in zip(service.catalog, problems, strict=True) if problem]
    idle = [status for status in service.servers.statuses if status.state == "off" and status.error]
    off = [f"{status.label} ({(status.error or '').rstrip('.')})" for status in idle]
    if off:
        notes.append(f"MCP servers that are off: {', '.join(off)}")
    if not access.is_open and not access.has_live_keys:
        notes.append("there is no API key that works, so nobody can use the service. To make one: ai-agent-service keys create --name NAME")
    if any(agent.parts.provider.name == Demo.name for agent in service.catalog):
        notes.append(
            "no provider is configured: agents answer by the demo provider. To connect one, put its key into .env, such as OPENAI_API_KEY"
        )
    return notes


def _tls(config: uvicorn.Config, made: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """As uvicorn makes it, whatever the machine's OpenSSL would still take."""
    context = made()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _listening(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say; a port in use is a fault like any other."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        print(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Set HOST or PORT, or stop what listens there.",
            file=sys.stderr,
        )
        sys.exit(1)
    listening.set_inheritable(True)
    return listening


def _refuse_without_keys(settings: Settings) -> None:
    """Ends the process if it were to listen beyond this machine, where each caller needs a key, and no key works.

    A database that cannot be asked now may have one, so that is no reason to.
    """
    if settings.allow_unauthenticated:
        logging.getLogger("ai_agent_service.access").warning(
            "ALLOW_UNAUTHENTICATED is set: WHOEVER REACHES %s:%s MAY USE EVERY AGENT AND READ AND DELETE WHAT IS REMEMBERED.",
            settings.host,
            settings.port,
        )
        return
    if settings.is_local or settings.api_keys is not None:
        return
    if asyncio.run(database_keys(settings)) in ("live", None):
        return
    problem = f"the service would listen on {settings.host}, beyond this machine, and there is no API key that works"
    remedy = "Set API_KEYS (or run: ai-agent-service keys create --name NAME), or set HOST=127.0.0.1, or set ALLOW_UNAUTHENTICATED=true"
    raise ConfigError([Fault(file="environment", field="HOST", problem=problem, remedy=remedy)])


def _tell_ready(configuration: Configuration, listening: socket.socket, notes: list[str], *, is_open: bool) -> None:
    """Says where the service is and what it offers, in words or, among lines of JSON, as one of them."""
    settings, url = configuration.settings, _url(configuration, listening)
    if not writes_json(settings.log_format):
        print(_welcome(configuration, url, notes, is_open=is_open), file=sys.stderr, flush=True)
        return
    ready: dict[str, Any] = {
        "service": settings.service_name,
        "version": settings.service_version,
        "url": url,
        "agents": [agent.agent_id for agent in configuration.agents],
        "needs_key": not is_open,
        "database": configuration.database,
        "notes": notes,
    }
    logging.getLogger("ai_agent_service").info("service.ready", extra=ready)


def _url(configuration: Configuration, listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - shown, not bound
    return f"{'https' if configuration.settings.tls_cert_file else 'http'}://{shown}:{port}"


def _own_command() -> str:
    """How this program is called from here."""
    return ".venv/bin/ai-agent-service" if Path(".venv/bin/ai-agent-service").is_file() else "ai-agent-service"


def _welcome(configuration: Configuration, url: str, notes: list[str], *, is_open: bool) -> str:
    agents = [agent.agent_id for agent in configuration.agents]
    access = "an API key is needed"
    if is_open and configuration.settings.allow_unauthenticated:
        access = "OPEN TO EVERYBODY who reaches it (ALLOW_UNAUTHENTICATED)"
    elif is_open:
        access = "no API key is needed, as only this machine can reach it; clients that insist on one may send anything"
    lines = [
        f"\n{configuration.settings.service_name} {configuration.settings.service_version} is ready: {url}",
        f"  agents   {', '.join(agents)}",
        f"  clients  {url}/v1   (base URL for Open WebUI and every OpenAI client)",
        f"  access   {access}",
        f"  docs     {url}/docs",
        *([f"  memory   {configuration.database}"] if configuration.database else []),
        f"  chat     {_own_command()} chat {agents[0]}   (in another terminal)",
    ]
    if Path("scripts/webui.py").is_file():
        where = "" if url == "http://127.0.0.1:8000" else f" SERVICE_URL={url}"
        lines.append(f"  web      make webui{where}   (Open WebUI with these agents, in another terminal)")
    lines += (f"  note     {note}" for note in notes)
    return "\n".join(lines) + "\n"


async def _agents_of(configuration: Configuration) -> tuple[list[tuple[str, ...]], list[str], str]:
    """The table of agents, a line for each that has fallbacks, and what auto is; no MCP server is started and no database opened for it."""
    servers = {definition.server_label for definition in configuration.servers.definitions}
    agents = tuple(agent.model_copy(update={"resources": ()}) for agent in configuration.agents)
    async with open_service(msgspec.structs.replace(configuration, agents=agents, servers=Servers(), warnings=())) as service:
        rows: list[tuple[str, ...]] = [("AGENT", "PROVIDER", "MODEL", "TOOLS", "MCP SERVERS", "READY")]
        fallbacks = []
        for agent in service.catalog:
            problem = await agent.problem()
            tools = ", ".join(spec.name for spec in agent.parts.toolset.specs) or "-"
            model = agent.definition.model or ("-" if problem else await agent.model() or "-")
            labels = ", ".join(label for label in agent.definition.allowed_mcp_servers if label in servers) or "-"
            rows.append((agent.agent_id, agent.parts.provider.name, model, tools, labels, f"no: {problem}" if problem else "yes"))
            if isinstance(agent.parts.provider, Fallback):
                fallbacks.append(await _fallbacks_of(agent.agent_id, agent.definition.model or "", agent.parts.provider))
        return rows, fallbacks, service.auto_provider


async def _fallbacks_of(agent_id: str, model: str, asked: Fallback) -> str:
    """Which providers an agent asks one after the other, and why some cannot be."""
    shown = []
    for candidate in (Other(asked.own, model), *asked.others):
        try:
            await candidate.named_model()
            shown.append(candidate.shown)
        except UpstreamError as error:
            shown.append(f"{candidate.shown} (no: {error.message})")
    return f"{agent_id} asks {shown[0]}; if that fails: {', '.join(shown[1:])}"


async def _connected(configuration: Configuration) -> tuple[ServerStatus, ...]:
    """What becomes of starting every server, those that no agent uses too."""
    settings, servers = configuration.settings, configuration.servers
    seconds = settings.mcp_connect_timeout
    async with open_servers(
        servers.definitions,
        configuration.environment,
        wanted=servers.labels,
        connect_seconds=seconds,
        tools_seconds=settings.mcp_tool_cache_ttl,
    ) as opened:
        await opened.settled(seconds + CONNECT_GRACE)
        return opened.statuses


def _echo_servers(configuration: Configuration, statuses: tuple[ServerStatus, ...]) -> None:
    if not statuses:
        click.echo(f"No MCP server is defined in {configuration.files.servers}.")
        return
    rows: list[tuple[str, ...]] = [("MCP SERVER", "TRANSPORT", "STATE", "TOOLS", "TIME", "ERROR")]
    for status in statuses:
        count, seconds = ("-", "-") if status.connect_seconds is None else (str(len(status.tools)), f"{status.connect_seconds:.2f} s")
        rows.append((status.label, status.transport, status.state, count, seconds, status.error or ""))
    click.echo(f"\n{table(rows)}\n")
    offered = {status.label: status.tools for status in statuses if status.state == "ready"}
    for label, tools in offered.items():
        click.echo(f"{label}: {', '.join(tools) or 'no tools'}")
    for agent in configuration.agents:
        total = len(agent.allowed_regular_tools)
        for label, allowed in agent.allowed_mcp_servers.items():
            if label not in offered:
                continue
            named = {*(allowed.allowed_mcp_tools or ()), *allowed.cached_mcp_tools}
            for name in sorted(named - set(offered[label])):
                click.echo(f"warning: agent {agent.agent_id}: {label} has no tool {name!r}. {nearest(name, offered[label])}")
            total += len(offered[label] if allowed.allowed_mcp_tools is None else set(allowed.allowed_mcp_tools) & set(offered[label]))
        if total > MANY_TOOLS:
            remedy = "Name those that it needs in allowed_mcp_tools"
            click.echo(f"warning: agent {agent.agent_id}: it has {total} tools, and OpenAI takes {MANY_TOOLS}. {remedy}")
