"""Reads agent_config.json into agent definitions, with every fault at once."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from ai_agent_service.config.agent_definition import (
    AUTO,
    PROVIDER_ALIASES,
    AgentDefinition,
    AllowedTools,
    FallbackDefinition,
)
from ai_agent_service.config.display_definition import (
    DisplayDefinition,
    SuggestionPrompt,
    load_avatar,
)
from ai_agent_service.config.json_files import expand_variables, read_json, suggest_name
from ai_agent_service.config.memory_definition import (
    BUILT_IN,
    CompressionDefinition,
    MemoryDefinition,
)
from ai_agent_service.config.prompts import read_prompt
from ai_agent_service.core.errors import Fault

LEGACY_TOOLS = frozenset({"search_knowledge_base", "list_documents"})

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
        return [], [
            Fault(
                file=str(path),
                problem="this is not a list of agents",
                remedy='Write [{"agent_id": ...}, ...]',
            )
        ]
    if not entries:
        return [], [
            Fault(file=str(path), problem="no agent is defined", remedy="Define at least one")
        ]
    agents: list[AgentDefinition] = []
    seen: set[str] = set()
    for number, entry in enumerate(entries, 1):
        where = _describe_place(entry, number)
        if not isinstance(entry, dict):
            faults.append(
                Fault(
                    file=str(path),
                    where=where,
                    problem="this is not an object",
                    remedy='Write {"agent_id": ..., ...}',
                )
            )
            continue
        agent, found = _read_agent(entry, path.parent, prompts, environment, known)
        if isinstance(agent_id := entry.get("agent_id"), str):
            if agent_id in seen:
                found.append(
                    Fault(
                        file="",
                        field="agent_id",
                        problem="another agent has this id",
                        remedy="Rename one of them",
                    )
                )
            seen.add(agent_id)
        faults += (msgspec.structs.replace(fault, file=str(path), where=where) for fault in found)
        if agent is not None:
            agents.append(agent)
    return agents, faults


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
    unused = [
        name
        for name in ("embedding_provider", "embedding_model", "rerank_provider", "rerank_model")
        if getattr(agent, name)
    ]
    if unused:
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
    faults = [
        Fault(
            file="",
            problem=f"the variable {name} is not set",
            remedy="Set it in the environment or in .env",
        )
        for name in sorted(missing)
    ]
    agent: AgentDefinition | None = None
    try:
        agent = AgentDefinition.model_validate(expanded)
    except ValidationError as error:
        faults += [
            _build_fault(part) for part in error.errors(include_input=False, include_url=False)
        ]
    if (
        agent is not None
        and (file := agent.resource_config.memory.compression.prompt_file) is not None
    ):
        agent, fault = _read_compression_prompt(agent, prompts, file)
        faults += [fault] if fault else []
    if agent is not None:
        display = load_avatar(agent.display, folder)
        if isinstance(display, Fault):
            faults.append(display)
        else:
            agent = agent.model_copy(update={"display": display})
    prompt, prompt_fault = _load_prompt(expanded, prompts)
    if prompt_fault is not None:
        problem = (
            f"{prompt_fault.file}: {prompt_fault.problem}"
            if prompt_fault.file
            else prompt_fault.problem
        )
        field = "system_prompt_file" if prompt_fault.file else "system_prompt"
        faults.append(Fault(file="", field=field, problem=problem, remedy=prompt_fault.remedy))
    backend = agent.resource_config.memory.backend if agent is not None else BUILT_IN
    if backend not in known.memories:
        place, problem = "resource_config.memory.backend", f"{backend!r} is not a memory backend"
        faults.append(
            Fault(
                file="", field=place, problem=problem, remedy=suggest_name(backend, known.memories)
            )
        )
    faults += _check_names(expanded, known)
    return (agent.model_copy(update={"system_prompt": prompt}) if agent else None), faults


def _read_compression_prompt(
    agent: AgentDefinition, prompts: Path, file: str
) -> tuple[AgentDefinition, Fault | None]:
    """`agent` with the prompt that `file` holds for its summaries."""
    text = read_prompt(prompts, file)
    if isinstance(text, Fault):
        place = "resource_config.memory.compression.prompt_file"
        return agent, Fault(
            file="", field=place, problem=f"{text.file}: {text.problem}", remedy=text.remedy
        )
    resources = agent.resource_config
    compression = resources.memory.compression.model_copy(update={"prompt": text})
    memory = resources.memory.model_copy(update={"compression": compression})
    return (
        agent.model_copy(
            update={"resource_config": resources.model_copy(update={"memory": memory})}
        ),
        None,
    )


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
                faults.append(
                    Fault(
                        file="",
                        field=field,
                        problem=f"{name!r} is not {kind}",
                        remedy=suggest_name(name, names),
                    )
                )
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


def _load_prompt(entry: dict[str, object], prompts: Path) -> tuple[str, Fault | None]:
    inline, file = entry.get("system_prompt"), entry.get("system_prompt_file")
    if inline is not None and file is not None:
        return "", Fault(
            file="",
            problem="system_prompt and system_prompt_file are both given",
            remedy="Keep one of them",
        )
    if isinstance(file, str):
        text = read_prompt(prompts, file)
        return ("", text) if isinstance(text, Fault) else (text, None)
    if inline is None or (isinstance(inline, str) and not inline.strip()):
        return "", Fault(
            file="",
            problem="the agent has no prompt",
            remedy="Give it a system_prompt or a system_prompt_file",
        )
    return str(inline), None


def _describe_place(entry: object, number: int) -> str:
    agent_id = entry.get("agent_id") if isinstance(entry, dict) else None
    return f"agent {agent_id!r}" if isinstance(agent_id, str) else f"agent number {number}"


def _build_fault(part: Any) -> Fault:
    field = ".".join(str(step) for step in part["loc"])
    problem, remedy = (
        part["msg"].removeprefix("Value error, "),
        "Correct it; docs/reference.md describes every field",
    )
    match part["type"]:
        case "extra_forbidden":
            problem, remedy = (
                "this field is not known",
                suggest_name(str(part["loc"][-1]), _find_fields(part["loc"])),
            )
        case "missing":
            problem, remedy = "this field is missing", "Add it"
        case "string_pattern_mismatch":
            problem, remedy = (
                "an id has letters, digits and . _ : @ - only, 128 at most",
                "Rename the agent",
            )
        case _:
            pass
    return Fault(file="", field=field, problem=problem, remedy=remedy)


def _find_fields(place: tuple[str | int, ...]) -> Collection[str]:
    """The fields that there are where the last of `place` is not one."""
    if place[:1] == ("display",):
        return (
            SuggestionPrompt.model_fields
            if "suggestion_prompts" in place
            else DisplayDefinition.model_fields
        )
    if "allowed_mcp_servers" in place:
        return AllowedTools.model_fields
    if place[:1] == ("fallback",):
        return FallbackDefinition.model_fields
    if place[:1] == ("resource_config",):
        return (
            CompressionDefinition.model_fields
            if "compression" in place
            else MemoryDefinition.model_fields
        )
    return AgentDefinition.model_fields
