"""Reads agent_config.json into agent definitions, with every fault at once."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
from pydantic import ValidationError

from ai_agent_service.config.agent_definition import AUTO, PROVIDER_ALIASES, AgentDefinition
from ai_agent_service.config.display_definition import load_avatar
from ai_agent_service.config.faults import (
    EntryKind,
    build_validation_faults,
    number_entries,
    read_entries,
)
from ai_agent_service.config.json_files import expand_variables, read_json, suggest_name
from ai_agent_service.config.memory_definition import BUILT_IN
from ai_agent_service.config.prompts import read_prompt
from ai_agent_service.core.errors import Fault

LEGACY_TOOLS = frozenset({"search_knowledge_base", "list_documents"})

_AGENT = EntryKind(
    noun="agent",
    id_field="agent_id",
    id_noun="id",
    id_rule="an id has letters, digits and . _ : @ - only, 128 at most",
    form='{"agent_id": ..., ...}',
)

_UNUSED_FIELDS = {"embedding_provider", "embedding_model", "rerank_provider", "rerank_model"}

KNOWN_RESOURCES = frozenset({"memory", "knowledge_base"})

_REWRITTEN_BY_OPEN_WEBUI = re.compile(r"^(gpt-[5-9]|o\d)")


class KnownNames(msgspec.Struct, frozen=True):
    """The names that an agent's fields may use."""

    types: Collection[str]
    providers: Collection[str]
    tools: Collection[str]
    memories: Collection[str] = (BUILT_IN,)


def read_agents(
    path: Path, prompts: Path, environment: Mapping[str, str], known: KnownNames
) -> tuple[list[AgentDefinition], list[Fault]]:
    """The agents that `path` defines, and everything wrong with it and with the prompt files it
    names.

    `${NAME}` is expanded in every string but a prompt, a description and what `display` says, which
    stay as written.
    """
    value, faults = read_json(path)
    if faults:
        return [], faults
    entries = [value] if isinstance(value, dict) else value
    if not isinstance(entries, list):
        remedy = 'Write [{"agent_id": ...}, ...]'
        return [], [Fault(file=str(path), problem="this is not a list of agents", remedy=remedy)]
    if not entries:
        remedy = "Define at least one"
        return [], [Fault(file=str(path), problem="no agent is defined", remedy=remedy)]
    return read_entries(
        path,
        number_entries(entries, _AGENT),
        _AGENT,
        lambda entry, _: _read_agent(entry, path.parent, prompts, environment, known),
    )


def collect_agent_warnings(agent: AgentDefinition, mcp_labels: frozenset[str]) -> list[str]:
    """What an operator should know about `agent` though it is no fault."""
    found = []
    if _REWRITTEN_BY_OPEN_WEBUI.match(agent.agent_id):
        found.append(
            "Open WebUI takes this agent_id for an OpenAI reasoning model and rewrites its"
            " requests; choose another"
        )
    if agent.memory is None and "memory" in agent.resource_config.model_fields_set:
        found.append('resource_config.memory has no effect without "resources": ["memory"]')
    if agent.memory is not None and agent.memory.compression.archive_conversations is not None:
        found.append(
            "archive_conversations has no effect: messages that are summarised always stay in the"
            " database"
        )
    if "knowledge_base" in agent.resources:
        found.append("the resource knowledge_base is not offered; the agent runs without it")
    legacy = sorted(LEGACY_TOOLS.intersection(agent.allowed_regular_tools))
    if legacy:
        found.append(
            f"the tools {', '.join(legacy)} belong to knowledge_base, which is not offered; the"
            " agent runs without them"
        )
    values = agent.model_dump(include=_UNUSED_FIELDS)
    if unused := [name for name, value in values.items() if value]:
        found.append(f"{', '.join(unused)} has no effect here")
    asked = [
        (agent.provider, agent.model),
        *((other.provider, other.model) for other in agent.fallback),
    ]
    if repeated := sorted(
        {provider for provider, model in asked if asked.count((provider, model)) > 1}
    ):
        found.append(
            f"fallback asks {', '.join(repeated)} for the same model again; that has no effect"
        )
    unknown = sorted(set(agent.allowed_mcp_servers) - mcp_labels)
    if unknown:
        found.append(
            f"the MCP servers {', '.join(unknown)} are not defined in the MCP configuration; the"
            " agent runs without them"
        )
    for label, allowed in agent.allowed_mcp_servers.items():
        if allowed.allowed_mcp_tools is not None and (
            needless := sorted(allowed.cached_mcp_tools.keys() - set(allowed.allowed_mcp_tools))
        ):
            found.append(
                f"cached_mcp_tools of {label} names {', '.join(needless)}, which allowed_mcp_tools"
                " does not; that has no effect"
            )
    return found


def _read_agent(
    entry: dict[str, object],
    folder: Path,
    prompts: Path,
    environment: Mapping[str, str],
    known: KnownNames,
) -> tuple[AgentDefinition | None, list[Fault]]:
    """The agent of `entry` and its faults, their file and place left open."""
    missing: set[str] = set()
    literal = {"system_prompt", "description", "display"}
    expanded = {
        key: item if key in literal else expand_variables(item, environment, missing)
        for key, item in entry.items()
    }
    remedy = "Set it in the environment or in .env"
    faults = [
        Fault(problem=f"the variable {name} is not set", remedy=remedy) for name in sorted(missing)
    ]
    agent: AgentDefinition | None = None
    try:
        agent = AgentDefinition.model_validate(expanded)
    except ValidationError as error:
        faults += build_validation_faults(error, AgentDefinition, kind=_AGENT)
    else:
        agent = _read_summary_prompt(agent, prompts, faults)
        agent = _read_avatar(agent, folder, faults)
        faults += _check_backend(agent, known)
    prompt = _load_prompt(expanded, prompts)
    if isinstance(prompt, Fault):
        faults.append(prompt)
        prompt = ""
    faults += _check_names(expanded, known)
    return (agent.model_copy(update={"system_prompt": prompt}) if agent else None), faults


def _read_avatar(agent: AgentDefinition, folder: Path, faults: list[Fault]) -> AgentDefinition:
    display = load_avatar(agent.display, folder)
    if isinstance(display, Fault):
        faults.append(display)
        return agent
    return agent.model_copy(update={"display": display})


def _read_summary_prompt(
    agent: AgentDefinition, prompts: Path, faults: list[Fault]
) -> AgentDefinition:
    resources = agent.resource_config
    file = resources.memory.compression.prompt_file
    if file is None:
        return agent
    text = _read_prompt(prompts, file, "resource_config.memory.compression.prompt_file")
    if isinstance(text, Fault):
        faults.append(text)
        return agent
    compression = resources.memory.compression.model_copy(update={"prompt": text})
    memory = resources.memory.model_copy(update={"compression": compression})
    resources = resources.model_copy(update={"memory": memory})
    return agent.model_copy(update={"resource_config": resources})


def _check_backend(agent: AgentDefinition, known: KnownNames) -> list[Fault]:
    backend = agent.resource_config.memory.backend
    if backend in known.memories:
        return []
    problem = f"{backend!r} is not a memory backend"
    remedy = suggest_name(backend, known.memories)
    return [Fault(field="resource_config.memory.backend", problem=problem, remedy=remedy)]


def _read_prompt(prompts: Path, file: str, field: str) -> str | Fault:
    """Return the text of a prompt file, or what is wrong with it as a fault of `field`."""
    text = read_prompt(prompts, file)
    if isinstance(text, Fault):
        return Fault(field=field, problem=f"{text.file}: {text.problem}", remedy=text.remedy)
    return text


def _check_names(entry: dict[str, object], known: KnownNames) -> list[Fault]:
    """Names in `entry` that nothing has; what is no name at all is a fault of its field."""
    places: list[tuple[str, str, Collection[str]]] = [
        ("type", "an agent type", known.types),
        ("provider", "a provider", {*known.providers, *PROVIDER_ALIASES, AUTO}),
        ("allowed_regular_tools", "a tool", {*known.tools, *LEGACY_TOOLS}),
        ("resources", "a resource", KNOWN_RESOURCES),
    ]
    faults = []
    values = [(field, entry.get(field), kind, names) for field, kind, names in places]
    values += [(field, value, *places[1][1:]) for field, value in _list_fallback_providers(entry)]
    for field, value, kind, names in values:
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and name not in names:
                remedy = suggest_name(name, names)
                faults.append(Fault(field=field, problem=f"{name!r} is not {kind}", remedy=remedy))
    return faults


def _list_fallback_providers(entry: dict[str, object]) -> list[tuple[str, object]]:
    """The providers that `fallback` names, with their places."""
    others = entry.get("fallback")
    listed = others if isinstance(others, list) else []
    return [
        (f"fallback.{place}.provider", other.get("provider"))
        for place, other in enumerate(listed)
        if isinstance(other, dict)
    ]


def _load_prompt(entry: dict[str, object], prompts: Path) -> str | Fault:
    inline, file = entry.get("system_prompt"), entry.get("system_prompt_file")
    if inline is not None and file is not None:
        problem = "system_prompt and system_prompt_file are both given"
        return Fault(field="system_prompt", problem=problem, remedy="Keep one of them")
    if isinstance(file, str):
        return _read_prompt(prompts, file, "system_prompt_file")
    if inline is None or (isinstance(inline, str) and not inline.strip()):
        remedy = "Give it a system_prompt or a system_prompt_file"
        return Fault(field="system_prompt", problem="the agent has no prompt", remedy=remedy)
    return str(inline)
