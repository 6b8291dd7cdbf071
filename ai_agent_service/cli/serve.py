"""ai-agent-service serve: start the service."""

import asyncio
import logging
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import uvicorn

from ai_agent_service.auth.access import Access
from ai_agent_service.cli.conventions import STARTER_NOTE
from ai_agent_service.cli.streams import echo
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.core.process_privacy import hide_memory, keep_descriptors
from ai_agent_service.observability.logging import is_json_format, write_plain
from ai_agent_service.observability.shared_metrics import open_metrics_folder
from ai_agent_service.providers.demo import Demo
from ai_agent_service.runtime.configuration import Configuration, load
from ai_agent_service.runtime.opening import KeyState, check_database_keys
from ai_agent_service.runtime.service import Service
from ai_agent_service.server.application import (
    METRICS_FOLDER,
    configure_logs,
    create_app,
    tune_garbage_collector,
)
from ai_agent_service.server.http1 import SAFETY_HEADERS, BoundedProtocol
from ai_agent_service.server.process import CANCEL_GRACE_SECONDS, GracefulServer, ShutdownTimeouts
from ai_agent_service.server.workers import WorkerPool

KEY_CHECK_SECONDS = 0.75


@click.command()
@click.option("--host", help="The address to listen on (HOST).")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port to listen on (PORT).")
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that share the port.",
)
@click.option(
    "--debug",
    is_flag=True,
    help="Log all that is said to models, by them and by tools (LOG_LEVEL=DEBUG).",
)
def serve(host: str | None, port: int | None, workers: int, debug: bool) -> None:
    """Start the service."""
    given: dict[str, Any] = {"host": host, "port": port, "log_level": "DEBUG" if debug else None}
    overrides = {name: value for name, value in given.items() if value is not None}
    configuration = load(**overrides)
    settings = configuration.settings
    configure_logs(configuration, is_one_of_several=workers > 1)
    keep_descriptors()
    if settings.protect_process_memory:
        hide_memory()
    _refuse_without_keys(settings)
    listening = _open_listener(settings)
    config = uvicorn.Config(
        (
            "ai_agent_service.server.application:create_worker_app"
            if workers > 1
            else create_app(configuration)
        ),
        factory=workers > 1,
        workers=workers,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=SAFETY_HEADERS,
        http=BoundedProtocol,
        ws="none",
        proxy_headers=False,  # else callers on this machine could say where they are
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        ssl_context_factory=_create_tls_context if settings.tls_cert_file else None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=CANCEL_GRACE_SECONDS,
    )
    timeouts = ShutdownTimeouts(settings.drain_seconds, settings.shutdown_timeout)
    if workers > 1:
        os.environ.update(
            {name.upper(): str(value) for name, value in overrides.items()}
        )  # for the workers, which read it anew
        if not configuration.files.is_starter:
            os.environ["AGENT_CONFIG_FILE"] = str(
                configuration.files.agents
            )  # a worker of later takes none in its place

        def welcome() -> None:
            is_open = settings.allow_unauthenticated or (
                settings.is_local
                and settings.api_keys is None
                and _check_keys(settings, within=settings.database_timeout) == "none"
            )
            notes = _collect_file_notes(configuration)
            _announce_ready(configuration, listening, notes, is_open=is_open)

        with open_metrics_folder() as folder:
            os.environ[METRICS_FOLDER] = str(folder)
            code = WorkerPool(config, listening, timeouts).run(welcome)
        sys.exit(code)
    server = GracefulServer(config, timeouts, partial(_handle_ready, configuration, listening))
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(3)


async def _handle_ready(
    configuration: Configuration, listening: socket.socket, server: GracefulServer
) -> None:
    """Says where to go once `server` is ready."""
    tune_garbage_collector()
    is_open = server.state.access.is_open
    notes = await _collect_notes(configuration, server.state.service, server.state.access)
    _announce_ready(configuration, listening, notes, is_open=is_open)


def _collect_file_notes(configuration: Configuration) -> list[str]:
    """What the operator should know of the files."""
    return [STARTER_NOTE] if configuration.files.is_starter else []


async def _collect_notes(
    configuration: Configuration, service: Service, access: Access
) -> list[str]:
    """What the operator should know at the start."""
    problems = await asyncio.gather(*(agent.find_problem() for agent in service.catalog))
    notes = _collect_file_notes(configuration)
    notes += [
        f"{agent.agent_id} cannot answer: {problem}"
        for agent, problem in zip(service.catalog, problems, strict=True)
        if problem
    ]
    idle = [status for status in service.servers.statuses if status.state == "off" and status.error]
    off = [f"{status.label} ({(status.error or '').rstrip('.')})" for status in idle]
    if off:
        notes.append(f"MCP servers that are off: {', '.join(off)}")
    if not access.is_open and not access.has_live_keys:
        notes.append(
            "there is no API key that works, so nobody can use the service. To make one:"
            " ai-agent-service keys create --name NAME"
        )
    if any(agent.parts.provider.name == Demo.name for agent in service.catalog):
        notes.append(
            "no provider is configured: agents answer by the demo provider. To connect one, put its"
            " key into .env, such as OPENAI_API_KEY"
        )
    return notes


def _create_tls_context(
    config: uvicorn.Config, made: Callable[[], ssl.SSLContext]
) -> ssl.SSLContext:
    """As uvicorn makes it, whatever the machine's OpenSSL would still take."""
    context = made()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _open_listener(settings: Settings) -> socket.socket:
    """A socket bound to where the settings say; a port in use is a fault like any other."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends small pieces at once only where the protocol is named; uvloop always does.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        # Connections are refused until the service takes them.
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        echo(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Set HOST or PORT,"
            " or stop what listens there.",
            err=True,
        )
        sys.exit(1)
    return listening


def _check_keys(settings: Settings, *, within: float) -> KeyState | None:
    """As check_database_keys, but None as well where the database does not answer `within` seconds:
    what hangs there must not keep the service from starting."""
    found: list[KeyState | None] = []
    check = threading.Thread(
        target=lambda: found.append(asyncio.run(check_database_keys(settings))), daemon=True
    )
    check.start()
    check.join(within)
    return found[0] if found else None


def _refuse_without_keys(settings: Settings) -> None:
    """Ends the process if it were to listen beyond this machine, where each caller needs a key, and
    no key works.

    A database that cannot be asked now may have one, so that is no reason to.
    """
    if settings.allow_unauthenticated:
        logging.getLogger("ai_agent_service.access").warning(
            "ALLOW_UNAUTHENTICATED is set: WHOEVER REACHES %s:%s MAY USE EVERY AGENT AND READ AND"
            " DELETE WHAT IS REMEMBERED.",
            settings.host,
            settings.port,
        )
        return
    if settings.is_local or settings.api_keys is not None:
        return
    if _check_keys(settings, within=KEY_CHECK_SECONDS) in ("live", None):
        return
    problem = (
        f"the service would listen on {settings.host}, beyond this machine, and there is no API key"
        " that works"
    )
    remedy = (
        "Set API_KEYS (or run: ai-agent-service keys create --name NAME), or set HOST=127.0.0.1, or"
        " set ALLOW_UNAUTHENTICATED=true"
    )
    raise ConfigError([Fault.in_environment("HOST", problem, remedy)])


def _announce_ready(
    configuration: Configuration, listening: socket.socket, notes: list[str], *, is_open: bool
) -> None:
    """Says where the service is and what it offers, in words or, among lines of JSON, as one of
    them."""
    settings, url = configuration.settings, _build_url(configuration, listening)
    if not is_json_format(settings.log_format):
        write_plain(f"{_format_welcome(configuration, url, notes, is_open=is_open)}\n")
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


def _build_url(configuration: Configuration, listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    # The address is shown, not bound.
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, shown)  # noqa: S104
    return f"{'https' if configuration.settings.tls_cert_file else 'http'}://{shown}:{port}"


def _find_own_command() -> str:
    """How this program is called from here."""
    return (
        ".venv/bin/ai-agent-service"
        if Path(".venv/bin/ai-agent-service").is_file()
        else "ai-agent-service"
    )


def _format_welcome(
    configuration: Configuration, url: str, notes: list[str], *, is_open: bool
) -> str:
    agents = [agent.agent_id for agent in configuration.agents]
    access = "an API key is needed"
    if is_open and configuration.settings.allow_unauthenticated:
        access = "OPEN TO EVERYBODY who reaches it (ALLOW_UNAUTHENTICATED)"
    elif is_open:
        access = (
            "no API key is needed, as only this machine can reach it; clients that insist on one"
            " may send anything"
        )
    lines = [
        (
            f"\n{configuration.settings.service_name} {configuration.settings.service_version} is"
            f" ready: {url}"
        ),
        f"  agents   {', '.join(agents)}",
        f"  clients  {url}/v1   (base URL for Open WebUI and every OpenAI client)",
        f"  access   {access}",
        f"  docs     {url}/docs",
        *([f"  memory   {configuration.database}"] if configuration.database else []),
        f"  chat     {_find_own_command()} chat {agents[0]}   (in another terminal)",
    ]
    if Path("scripts/webui.py").is_file():
        where = "" if url == "http://127.0.0.1:8000" else f" SERVICE_URL={url}"
        lines.append(
            f"  web      make webui{where}   (Open WebUI with these agents, in another terminal)"
        )
    lines += (f"  note     {note}" for note in notes)
    return "\n".join(lines) + "\n"
