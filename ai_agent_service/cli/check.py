"""ai-agent-service check: validate the configuration."""

import asyncio
import sys
from contextlib import AbstractAsyncContextManager

import click
import msgspec

from ai_agent_service.cli.conventions import STARTER_NOTE
from ai_agent_service.cli.output import format_table
from ai_agent_service.cli.streams import echo
from ai_agent_service.config.json_files import suggest_name
from ai_agent_service.config.read_servers import ServerDefinitions
from ai_agent_service.core.errors import UpstreamError
from ai_agent_service.core.process_privacy import hide_memory
from ai_agent_service.core.redaction import redact_secrets
from ai_agent_service.health.checks import ProviderHealth, ping_provider
from ai_agent_service.mcp.connection import ServerStatus
from ai_agent_service.mcp.supervisor import open_servers
from ai_agent_service.observability.logging import configure_logging
from ai_agent_service.providers.fallback import FailoverCandidate, FallbackProvider
from ai_agent_service.runtime.configuration import Configuration, load
from ai_agent_service.runtime.opening import open_service
from ai_agent_service.runtime.service import Service

CONNECT_GRACE_SECONDS = 5.0
"""How much longer than MCP_CONNECT_TIMEOUT `check --connect` waits for the servers."""

MAX_OPENAI_TOOLS = 128
"""What OpenAI takes in one request."""


@click.command()
@click.option(
    "--connect",
    is_flag=True,
    help="Ask each provider and start each MCP server too, and list its tools.",
)
def check(connect: bool) -> None:
    """Validate the whole configuration and show what it defines, without serving."""
    configuration = load()
    configure_logging("CRITICAL")
    rows, fallbacks, auto = asyncio.run(_describe_agents(configuration))
    echo(format_table(rows))
    for line in fallbacks:
        echo(line)
    echo(f"\nAgents with the provider auto use: {auto}")
    definitions = configuration.servers.definitions
    unusable = _echo_providers(asyncio.run(_ping_providers(configuration))) if connect else []
    if connect and definitions:
        echo(
            f"\nStarting {len(definitions)} MCP servers (up to"
            f" {configuration.settings.mcp_connect_timeout:g} s) ..."
        )
    statuses = asyncio.run(_connect_servers(configuration)) if connect and definitions else ()
    if connect:
        _echo_servers(configuration, statuses)
    elif definitions:
        off = {
            each.server_label: (
                each.off_reason or each.find_command_problem(configuration.environment)
            )
            for each in definitions
        }
        shown = (
            f"{label} (off: {why.rstrip('.')})" if why else label for label, why in off.items()
        )
        echo(
            f"MCP servers: {', '.join(shown)}. To see whether they can be reached: check --connect"
        )
    for warning in configuration.warnings:
        echo(f"warning: {warning}")
    count = len(configuration.agents)
    echo(f"{count} agent{'s' if count > 1 else ''} in {configuration.files.agents}: no faults.")
    if configuration.files.is_starter:
        echo(f"note: {STARTER_NOTE}")
    meant = {definition.server_label for definition in definitions if definition.off_reason is None}
    failed = [
        status.label for status in statuses if status.label in meant and status.state != "ready"
    ]
    if unusable:
        echo(f"Providers that cannot be used: {', '.join(unusable)}.")
    if failed:
        echo(
            f"{len(failed)} of {len(definitions)} MCP servers cannot be used: {', '.join(failed)}."
        )
    if unusable or failed:
        sys.exit(1)


def _open_agents(configuration: Configuration) -> AbstractAsyncContextManager[Service]:
    """Return the service with its agents and providers, without MCP servers and a database."""
    agents = tuple(agent.model_copy(update={"resources": ()}) for agent in configuration.agents)
    return open_service(
        msgspec.structs.replace(
            configuration, agents=agents, servers=ServerDefinitions(), warnings=()
        )
    )


async def _ping_providers(configuration: Configuration) -> dict[str, ProviderHealth]:
    """Return the state of each provider in use by its name, without secrets in it."""
    async with _open_agents(configuration) as service:
        answers = await asyncio.gather(*map(ping_provider, service.providers.values()))
        for answer in answers:
            answer.error = redact_secrets(answer.error or "", service.secrets)
        return dict(zip(service.providers, answers, strict=True))


def _echo_providers(answers: dict[str, ProviderHealth]) -> list[str]:
    """Show the state of each provider, and return those that are configured and do not work."""
    rows: list[tuple[str, ...]] = [("PROVIDER", "STATE", "TIME", "ERROR")]
    for name, answer in sorted(answers.items()):
        time = "-" if answer.round_trip_ms is None else f"{answer.round_trip_ms / 1000:.2f} s"
        rows.append((name, answer.state, time, answer.error or ""))
    echo(f"\n{format_table(rows)}")
    return [name for name, answer in sorted(answers.items()) if answer.state in ("down", "timeout")]


async def _describe_agents(
    configuration: Configuration,
) -> tuple[list[tuple[str, ...]], list[str], str]:
    """The table of agents, a line for each that has fallbacks, and what auto is; no MCP server is
    started and no database opened for it."""
    servers = {definition.server_label for definition in configuration.servers.definitions}
    async with _open_agents(configuration) as service:
        rows: list[tuple[str, ...]] = [
            ("AGENT", "PROVIDER", "MODEL", "API", "TOOLS", "MCP SERVERS", "READY")
        ]
        fallbacks = []
        for agent in service.catalog:
            problem = await agent.find_problem()
            tools = ", ".join(spec.name for spec in agent.parts.toolset.specs) or "-"
            model = agent.definition.model or ("-" if problem else await agent.model() or "-")
            labels = (
                ", ".join(
                    label for label in agent.definition.allowed_mcp_servers if label in servers
                )
                or "-"
            )
            rows.append(
                (
                    agent.agent_id,
                    agent.parts.provider.name,
                    model,
                    service.describe_api(agent, model) or "-",
                    tools,
                    labels,
                    f"no: {problem}" if problem else "yes",
                )
            )
            if isinstance(agent.parts.provider, FallbackProvider):
                fallbacks.append(
                    await _describe_fallbacks(
                        agent.agent_id, agent.definition.model or "", agent.parts.provider
                    )
                )
        return rows, fallbacks, service.auto_provider


async def _describe_fallbacks(agent_id: str, model: str, asked: FallbackProvider) -> str:
    """Which providers an agent asks one after the other, and why some cannot be."""
    shown = []
    for candidate in (FailoverCandidate(asked.own, model), *asked.others):
        try:
            await candidate.resolve_model()
            shown.append(candidate.label)
        except UpstreamError as error:
            shown.append(f"{candidate.label} (no: {error.message})")
    return f"{agent_id} asks {shown[0]}; if that fails: {', '.join(shown[1:])}"


async def _connect_servers(configuration: Configuration) -> tuple[ServerStatus, ...]:
    """What becomes of starting every server, those that no agent uses too."""
    settings, servers = configuration.settings, configuration.servers
    if settings.protect_process_memory:
        hide_memory()
    seconds = settings.mcp_connect_timeout
    async with open_servers(
        servers.definitions,
        configuration.environment,
        wanted=servers.labels,
        connect_seconds=seconds,
        tools_seconds=settings.mcp_tool_cache_ttl,
    ) as opened:
        await opened.wait_for_start(seconds + CONNECT_GRACE_SECONDS)
        return opened.statuses


def _echo_servers(configuration: Configuration, statuses: tuple[ServerStatus, ...]) -> None:
    if not statuses:
        echo(f"\nNo MCP server is defined in {configuration.files.servers}.")
        return
    rows: list[tuple[str, ...]] = [("MCP SERVER", "TRANSPORT", "STATE", "TOOLS", "TIME", "ERROR")]
    for status in statuses:
        count, seconds = (
            ("-", "-")
            if status.connect_seconds is None
            else (str(len(status.tools)), f"{status.connect_seconds:.2f} s")
        )
        rows.append(
            (status.label, status.transport, status.state, count, seconds, status.error or "")
        )
    echo(f"\n{format_table(rows)}\n")
    offered = {status.label: status.tools for status in statuses if status.state == "ready"}
    for label, tools in offered.items():
        echo(f"{label}: {', '.join(tools) or 'no tools'}")
    for status in statuses:
        for problem in status.problems:
            echo(f"warning: {status.label}: {problem}")
    for agent in configuration.agents:
        total = len(agent.allowed_regular_tools)
        for label, allowed in agent.allowed_mcp_servers.items():
            if label not in offered:
                continue
            named = {*(allowed.allowed_mcp_tools or ()), *allowed.cached_mcp_tools}
            for name in sorted(named - set(offered[label])):
                echo(
                    f"warning: agent {agent.agent_id}: {label} has no tool {name!r}."
                    f" {suggest_name(name, offered[label])}"
                )
            total += len(
                offered[label]
                if allowed.allowed_mcp_tools is None
                else set(allowed.allowed_mcp_tools) & set(offered[label])
            )
        if total > MAX_OPENAI_TOOLS:
            remedy = "Name those that it needs in allowed_mcp_tools"
            echo(
                f"warning: agent {agent.agent_id}: it has {total} tools, and OpenAI takes"
                f" {MAX_OPENAI_TOOLS}. {remedy}"
            )
