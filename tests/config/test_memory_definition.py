"""`resource_config.memory` in agent_config.json: its defaults, and every fault of it with its place
and remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.config.memory_definition import CompressionDefinition, MemoryDefinition
from ai_agent_service.config.read_agents import KnownNames, collect_agent_warnings, read_agents
from ai_agent_service.core.errors import ConfigError, Fault
from tests.support.service import AGENT, configuration

KNOWN = KnownNames(["agent"], ["demo"], [])
PLACE = "resource_config.memory"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "shorten.txt").write_text("Shorten this.\n", encoding="utf-8")
    return tmp_path


def read(
    folder: Path, resources: object, environment: dict[str, str] | None = None
) -> tuple[list[AgentDefinition], list[Fault]]:
    agent = {
        "agent_id": "a",
        "system_prompt": "x",
        "provider": "demo",
        "resources": ["memory"],
        "resource_config": resources,
    }
    path = folder / "agent_config.json"
    path.write_text(json.dumps([agent]), encoding="utf-8")
    return read_agents(path, folder / "prompts", environment or {}, KNOWN)


def read_memory(folder: Path, memory: object) -> MemoryDefinition:
    [agent], faults = read(folder, {"memory": memory})
    assert faults == []
    assert agent.memory is not None
    return agent.memory


def find_fault(folder: Path, memory: object) -> Fault:
    _, [fault] = read(folder, {"memory": memory})
    assert (fault.file, fault.where) == (str(folder / "agent_config.json"), "agent 'a'")
    return fault


@pytest.mark.parametrize(
    "resources", [None, {}, {"memory": None}, {"memory": {}}, {"memory": {"compression": None}}]
)
def test_what_is_absent_or_null_has_its_default(folder: Path, resources: object) -> None:
    [agent], faults = read(folder, resources)
    assert faults == []
    assert agent.memory is not None
    assert (agent.memory.required, agent.memory.retention_days, agent.memory.history_messages) == (
        True,
        None,
        100,
    )
    compression = agent.memory.compression
    assert (
        compression.enabled,
        compression.threshold_tokens,
        compression.recent_messages_to_keep,
    ) == (True, None, 10)
    assert (compression.model, compression.agent, compression.prompt_file, compression.prompt) == (
        None,
        None,
        None,
        "",
    )


def test_an_agent_without_the_resource_does_not_remember_and_its_memory_config_warns() -> None:
    agent = AgentDefinition.model_validate(
        {"agent_id": "a", "resource_config": {"memory": {"required": False}}}
    )
    assert agent.memory is None
    assert collect_agent_warnings(agent, frozenset()) == [
        'resource_config.memory has no effect without "resources": ["memory"]'
    ]


def test_what_is_given_is_taken(folder: Path) -> None:
    compression = {
        "enabled": False,
        "threshold_tokens": 500,
        "recent_messages_to_keep": 4,
        "model": "small",
        "agent": "a",
    }
    memory = {
        "required": False,
        "retention_days": 0.5,
        "history_messages": 20,
        "compression": compression,
    }
    assert read_memory(folder, memory) == MemoryDefinition(
        required=False,
        retention_days=0.5,
        history_messages=20,
        compression=CompressionDefinition.model_validate(compression),
    )


def test_the_prompt_for_summaries_comes_from_its_file(folder: Path) -> None:
    for name in ("shorten.txt", "prompts/shorten.txt"):
        assert (
            read_memory(folder, {"compression": {"prompt_file": name}}).compression.prompt
            == "Shorten this."
        )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("absent.txt", "absent.txt: the file does not exist"),
        ("../secret.txt", "without '..'"),
        ("/etc/hostname", "relative to the prompts folder"),
        ("outside.txt", "this link leads out of the prompts folder"),
        ("empty.txt", "the prompt is empty"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_a_fault(
    folder: Path, name: str, problem: str
) -> None:
    (folder / "secret.txt").write_text("secret", encoding="utf-8")
    (folder / "prompts" / "outside.txt").symlink_to(folder / "secret.txt")
    (folder / "prompts" / "empty.txt").write_text(" \n", encoding="utf-8")
    fault = find_fault(folder, {"compression": {"prompt_file": name}})
    assert fault.field == f"{PLACE}.compression.prompt_file"
    assert problem in fault.problem
    assert fault.remedy


@pytest.mark.parametrize(
    ("memory", "field", "nearest"),
    [
        ({"requird": True}, "requird", "required"),
        ({"retention": 3}, "retention", "retention_days"),
        (
            {"compression": {"threshold_token": 500}},
            "compression.threshold_token",
            "threshold_tokens",
        ),
        (
            {"compression": {"recent_messages": 5}},
            "compression.recent_messages",
            "recent_messages_to_keep",
        ),
    ],
)
def test_an_unknown_field_is_told_with_its_place_and_the_nearest_name(
    folder: Path, memory: object, field: str, nearest: str
) -> None:
    fault = find_fault(folder, memory)
    assert (fault.field, fault.problem, fault.remedy) == (
        f"{PLACE}.{field}",
        "this field is not known",
        f"Did you mean {nearest!r}?",
    )


@pytest.mark.parametrize(
    ("memory", "field"),
    [
        ({"required": "sometimes"}, "required"),
        ({"retention_days": 0}, "retention_days"),
        ({"retention_days": -1}, "retention_days"),
        ({"retention_days": "for ever"}, "retention_days"),
        ({"history_messages": 1}, "history_messages"),
        ({"history_messages": 100_000}, "history_messages"),
        ({"compression": {"threshold_tokens": 10}}, "compression.threshold_tokens"),
        ({"compression": {"recent_messages_to_keep": 0}}, "compression.recent_messages_to_keep"),
        ({"compression": {"recent_messages_to_keep": 2.5}}, "compression.recent_messages_to_keep"),
        ({"compression": {"model": 4}}, "compression.model"),
        ({"compression": True}, "compression"),
        (True, ""),
    ],
)
def test_a_wrong_value_is_a_fault_at_its_place(folder: Path, memory: object, field: str) -> None:
    fault = find_fault(folder, memory)
    assert fault.field == f"{PLACE}.{field}".rstrip(".")
    assert fault.problem
    assert fault.remedy


def test_all_faults_of_a_memory_are_found_at_once(folder: Path) -> None:
    _, faults = read(
        folder,
        {
            "memory": {
                "retention_days": 0,
                "wrong": 1,
                "compression": {"enabled": "perhaps", "agents": "b"},
            }
        },
    )
    assert sorted(fault.field.removeprefix(f"{PLACE}.") for fault in faults) == [
        "compression.agents",
        "compression.enabled",
        "retention_days",
        "wrong",
    ]


def test_variables_are_expanded_in_the_names_that_a_memory_has(folder: Path) -> None:
    [agent], faults = read(
        folder, {"memory": {"compression": {"model": "${SMALL}"}}}, {"SMALL": "gpt-small"}
    )
    assert faults == []
    assert agent.memory is not None
    assert agent.memory.compression.model == "gpt-small"


@pytest.mark.parametrize("value", [True, False])
def test_the_older_field_archive_conversations_loads_and_is_warned_of(
    folder: Path, value: bool
) -> None:
    [agent], faults = read(folder, {"memory": {"compression": {"archive_conversations": value}}})
    assert faults == []
    assert collect_agent_warnings(agent, frozenset()) == [
        "archive_conversations has no effect: messages that are summarised always stay in the"
        " database"
    ]


def agents_with(**compression: Any) -> list[dict[str, Any]]:
    return [
        {
            **AGENT,
            "resources": ["memory"],
            "resource_config": {"memory": {"compression": compression}},
        },
        {**AGENT, "agent_id": "cheap"},
    ]


def test_an_agent_to_make_summaries_that_does_not_exist_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration(tmp_path, agents=agents_with(agent="chep"))
    [fault] = caught.value.faults
    assert (fault.file, fault.where, fault.field) == (
        str(tmp_path / "agent_config.json"),
        "agent 'helper'",
        f"{PLACE}.compression.agent",
    )
    assert (fault.problem, fault.remedy) == ("'chep' is not an agent", "Did you mean 'cheap'?")


def test_an_agent_to_make_summaries_that_exists_is_taken(tmp_path: Path) -> None:
    memory = configuration(tmp_path, agents=agents_with(agent="cheap")).agents[0].memory
    assert memory is not None
    assert memory.compression.agent == "cheap"
