"""agent_config.json: what loads, and every fault of it with its place and remedy."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from dirty_equals import IsStr

from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.config.read_agents import KnownNames, collect_agent_warnings, read_agents
from ai_agent_service.core.errors import Fault

KNOWN = KnownNames(
    ["agent"], ["azure_openai", "ollama", "demo"], ["get_current_datetime", "add_two_numbers"]
)
GOOD: dict[str, Any] = {"agent_id": "a", "system_prompt": "You help.", "provider": "demo"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "a.txt").write_text("From a file.\n", encoding="utf-8")
    return tmp_path


def read(
    folder: Path, content: object, environment: dict[str, str] | None = None
) -> tuple[list[AgentDefinition], list[Fault]]:
    path = folder / "agent_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_agents(path, folder / "prompts", environment or {}, KNOWN)


def find_faults(
    folder: Path, *entries: object, environment: dict[str, str] | None = None
) -> list[tuple[str, str, str, str]]:
    _, faults = read(folder, list(entries), environment)
    assert all(fault.file == str(folder / "agent_config.json") for fault in faults)
    return [(fault.where, fault.field, fault.problem, fault.remedy) for fault in faults]


def read_agent(folder: Path, **fields: Any) -> AgentDefinition:
    agents, faults = read(folder, [{**GOOD, **fields}])
    assert faults == []
    return agents[0]


def test_absent_fields_have_safe_defaults(folder: Path) -> None:
    agent = read_agent(folder)
    assert (agent.allowed_regular_tools, agent.allowed_mcp_servers, agent.model, agent.type) == (
        (),
        {},
        None,
        "agent",
    )
    assert (agent.client_tools, agent.max_steps, agent.resources) == ("accept", 12, ())


def test_a_prompt_comes_from_its_file(folder: Path) -> None:
    for name in ("a.txt", "prompts/a.txt"):
        agents, faults = read(folder, [{"agent_id": "a", "system_prompt_file": name}])
        assert (faults, agents[0].system_prompt) == ([], "From a file.")


def test_null_means_absent(folder: Path) -> None:
    agent = read_agent(
        folder,
        model=None,
        model_settings=None,
        allowed_regular_tools=None,
        allowed_mcp_servers=None,
        resources=None,
    )
    assert (agent.model_settings, agent.allowed_regular_tools, agent.allowed_mcp_servers) == (
        {},
        (),
        {},
    )


def test_azure_openai_cc_is_an_alias(folder: Path) -> None:
    assert read_agent(folder, provider="azure_openai_cc").provider == "azure_openai"


def test_one_agent_may_stand_without_a_list(folder: Path) -> None:
    assert [agent.agent_id for agent in read(folder, GOOD)[0]] == ["a"]


def test_a_byte_order_mark_is_borne(folder: Path) -> None:
    assert read(folder, "\ufeff" + json.dumps([GOOD]))[1] == []


def test_mcp_servers_are_read_in_both_forms(folder: Path) -> None:
    new = read_agent(
        folder,
        allowed_mcp_servers={
            "wiki": {"allowed_mcp_tools": ["read"]},
            "fetch": {"allowed_mcp_tools": None},
            "x": {},
        },
    )
    old = read_agent(
        folder, allowed_mcp_servers=["wiki", "fetch", "x"], allowed_mcp_tools={"wiki": ["read"]}
    )
    assert new.allowed_mcp_servers == old.allowed_mcp_servers
    assert {
        label: allowed.allowed_mcp_tools for label, allowed in old.allowed_mcp_servers.items()
    } == {
        "wiki": ("read",),
        "fetch": None,
        "x": None,
    }
    assert (
        read_agent(folder, allowed_mcp_servers=[], allowed_mcp_tools=[]).allowed_mcp_servers == {}
    )


def test_all_faults_of_all_agents_are_found_at_once(folder: Path) -> None:
    found = find_faults(
        folder,
        {**GOOD, "agent_id": "first", "allowed_tools": []},
        {"agent_id": "second", "provider": 5, "system_prompt_file": "absent.txt"},
        {**GOOD, "agent_id": "no spaces"},
        {**GOOD, "max_steps": 0, "client_tools": "sometimes", "model_settings": {"messages": []}},
        "not an agent",
        {"system_prompt": "x"},
    )
    assert found == [
        (
            "agent 'first'",
            "allowed_tools",
            "this field is not known",
            IsStr(regex=r"Did you mean '.*tools.*'\?"),
        ),
        ("agent 'second'", "provider", "Input should be a valid string", IsStr()),
        (
            "agent 'second'",
            "system_prompt_file",
            IsStr(regex=".*absent.txt: the file does not exist"),
            IsStr(),
        ),
        ("agent 'no spaces'", "agent_id", IsStr(regex="an id has letters.*"), "Rename the agent"),
        ("agent 'a'", "model_settings", IsStr(regex="messages cannot be set here.*"), IsStr()),
        (
            "agent 'a'",
            "client_tools",
            IsStr(regex="this is neither 'accept' nor 'ignore'.*"),
            IsStr(),
        ),
        ("agent 'a'", "max_steps", IsStr(), IsStr()),
        ("agent number 5", "", "this is not an object", IsStr()),
        ("agent number 6", "agent_id", "this field is missing", "Add it"),
    ]


def test_an_unknown_field_of_a_server_is_told_with_the_nearest_name(folder: Path) -> None:
    [fault] = find_faults(folder, {**GOOD, "allowed_mcp_servers": {"wiki": {"allowed_tools": []}}})
    assert fault[1:] == (
        "allowed_mcp_servers.wiki.allowed_tools",
        "this field is not known",
        "Did you mean 'allowed_mcp_tools'?",
    )


@pytest.mark.parametrize(
    ("place", "known"),
    [
        ("access.grops", "groups"),
        ("display.tagz", "tags"),
        ("display.suggestion_prompts.0.titel", "title"),
        ("fallback.0.modle", "model"),
        ("resource_config.memory.bakend", "backend"),
        ("resource_config.memory.compression.modl", "model"),
        ("maxsteps", "max_steps"),
    ],
)
def test_the_nearest_name_is_one_of_the_same_object(folder: Path, place: str, known: str) -> None:
    entry: Any = 1
    for step in reversed(place.split(".")):
        entry = [entry] if step == "0" else {step: entry}
    faults = find_faults(folder, {**GOOD, **entry})
    assert (place, "this field is not known", f"Did you mean {known!r}?") in [
        fault[1:] for fault in faults
    ]


def test_two_agents_cannot_have_one_id(folder: Path) -> None:
    assert find_faults(folder, GOOD, GOOD) == [
        ("agent 'a'", "agent_id", "another agent has this id", "Rename one of them")
    ]


def test_fallbacks_are_read_with_the_aliases_of_providers(folder: Path) -> None:
    agent = read_agent(
        folder, fallback=[{"provider": "azure_openai_cc", "model": "mini"}, {"provider": "auto"}]
    )
    assert [(other.provider, other.model) for other in agent.fallback] == [
        ("azure_openai", "mini"),
        ("auto", None),
    ]
    assert read_agent(folder, fallback=None).fallback == read_agent(folder).fallback == ()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"reasoning": "low"}, "reasoning must be an object"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort must be a string"),
        ({"reasoning_effort": True}, "reasoning_effort must be a string"),
        ({"verbosity": 1}, "verbosity must be a string"),
        ({"service_tier": []}, "service_tier must be a string"),
        ({"prompt_cache_key": 5}, "prompt_cache_key must be a string"),
        ({"temperature": "0.2"}, "temperature must be a number"),
        ({"top_p": []}, "top_p must be a number"),
        ({"max_tokens": "100"}, "max_tokens must be an integer"),
        ({"max_completion_tokens": 0.5}, "max_completion_tokens must be an integer"),
        ({"response_format": "json"}, "response_format must be an object"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls must be true or false"),
    ],
)
def test_a_setting_of_another_type_is_a_fault(
    folder: Path, settings: dict[str, Any], problem: str
) -> None:
    [(_, field, found, _)] = find_faults(folder, {**GOOD, "model_settings": settings})
    assert field == "model_settings"
    assert found.startswith(problem)


def test_the_settings_of_reasoning_may_be_null(folder: Path) -> None:
    settings = {"reasoning": {"effort": "low", "summary": None}, "verbosity": None}
    assert read_agent(folder, model_settings=settings).model_settings == settings


@pytest.mark.parametrize(
    ("fallback", "field", "problem"),
    [
        (
            [{"provider": "demo"}, {"provider": "olama"}],
            "fallback.1.provider",
            "'olama' is not a provider",
        ),
        ([{"model": "mini"}], "fallback.0.provider", "this field is missing"),
        ([{"provider": "demo", "modle": "mini"}], "fallback.0.modle", "this field is not known"),
        ([{"provider": 3}], "fallback.0.provider", IsStr()),
        (["demo"], "fallback.0", IsStr()),
        ({"provider": "demo"}, "fallback", IsStr()),
        (
            [{"provider": "demo", "model": str(number)} for number in range(9)],
            "fallback",
            IsStr(regex=".*at most 8 items.*"),
        ),
    ],
)
def test_what_is_wrong_in_a_fallback_is_a_fault_with_its_place(
    folder: Path, fallback: object, field: str, problem: str
) -> None:
    assert [fault[1:3] for fault in find_faults(folder, {**GOOD, "fallback": fallback})] == [
        (field, problem)
    ]


def test_the_remedy_for_a_fallback_is_the_nearest_name(folder: Path) -> None:
    remedies = [
        fault[3]
        for fault in find_faults(
            folder, {**GOOD, "fallback": [{"provider": "olama", "modle": "mini"}]}
        )
    ]
    assert remedies == ["Did you mean 'model'?", "Did you mean 'ollama'?"]


@pytest.mark.parametrize(
    "fallback",
    [
        [{"provider": "demo"}],
        [{"provider": "ollama"}, {"provider": "ollama"}],
        [{"provider": "azure_openai_cc"}, {"provider": "azure_openai"}],
    ],
)
def test_a_fallback_to_the_same_is_warned_of(folder: Path, fallback: object) -> None:
    [warning] = collect_agent_warnings(read_agent(folder, fallback=fallback), frozenset())
    assert "for the same model again" in warning


def test_a_fallback_to_another_model_is_not_warned_of(folder: Path) -> None:
    assert (
        collect_agent_warnings(
            read_agent(folder, fallback=[{"provider": "demo", "model": "other"}]), frozenset()
        )
        == []
    )


def test_an_unknown_resource_is_a_fault(folder: Path) -> None:
    [fault] = find_faults(folder, {**GOOD, "resources": ["memmory"]})
    assert fault[1:] == ("resources", "'memmory' is not a resource", "Did you mean 'memory'?")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            {"system_prompt": "x", "system_prompt_file": "a.txt"},
            "system_prompt and system_prompt_file are both given",
        ),
        ({}, "the agent has no prompt"),
        ({"system_prompt": "  "}, "the agent has no prompt"),
        ({"system_prompt_file": "../a.txt"}, "without '..'"),
        ({"system_prompt_file": "/etc/hostname"}, "relative to the prompts folder"),
        ({"system_prompt_file": "outside.txt"}, "this link leads out of the prompts folder"),
        ({"system_prompt_file": "empty.txt"}, "the prompt is empty"),
        ({"system_prompt_file": "latin.txt"}, "it is not UTF-8 text"),
        ({"system_prompt_file": "."}, "this is a folder"),
        ({"system_prompt_file": "a\x00.txt"}, "no file has such a name"),
        ({"system_prompt_file": "a" * 5_000}, "no file can be found under this name"),
        ({"system_prompt_file": "loop.txt"}, "no file can be found under this name"),
        ({"system_prompt_file": "pipe.txt"}, "this is not a file"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_a_fault(
    folder: Path, entry: dict[str, str], problem: str
) -> None:
    (folder / "secret.txt").write_text("secret", encoding="utf-8")
    (folder / "prompts" / "outside.txt").symlink_to(folder / "secret.txt")
    (folder / "prompts" / "loop.txt").symlink_to(folder / "prompts" / "loop.txt")
    os.mkfifo(folder / "prompts" / "pipe.txt")
    (folder / "prompts" / "empty.txt").write_text(" \n", encoding="utf-8")
    (folder / "prompts" / "latin.txt").write_bytes("é".encode("latin-1"))
    [fault] = find_faults(folder, {"agent_id": "a", **entry})
    assert problem in fault[2]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "this is not JSON"),
        ("[{]", "this is not JSON"),
        ("5", "this is not a list of agents"),
        ("[]", "no agent is defined"),
        ('[{"agent_id": "a", "agent_id": "b"}]', "this field stands twice in one object"),
        ("[" * 100_000, "it is nested too deeply"),
        ("[" + "9" * 5_000 + "]", "too many digits"),
        ('[{"model_settings": {"temperature": NaN}}]', "is none"),
        ('[{"system_prompt": "\\ud800"}]', "half of a surrogate pair"),
    ],
)
def test_a_file_that_is_not_a_list_of_agents_is_a_fault(
    folder: Path, content: str, problem: str
) -> None:
    agents, [fault] = read(folder, content)
    assert agents == []
    assert problem in fault.problem


def test_a_fault_of_json_names_its_line(folder: Path) -> None:
    assert read(folder, '[\n  {"agent_id": a}\n]')[1][0].where == IsStr(regex=r"line 2, column \d+")


def test_an_absent_file_is_a_fault(folder: Path) -> None:
    _, [fault] = read_agents(folder / "absent.json", folder / "prompts", {}, KNOWN)
    assert fault.problem == "the file does not exist"


def test_variables_are_expanded_once_but_not_in_prompts(folder: Path) -> None:
    entry = {
        **GOOD,
        "model": "${MODEL}",
        "system_prompt": "Say ${MODEL}.",
        "model_settings": {"stop": ["${STOP}"]},
    }
    agents, faults = read(folder, [entry], {"MODEL": "gpt-${STOP}", "STOP": "end"})
    assert faults == []
    assert (agents[0].model, agents[0].system_prompt, agents[0].model_settings) == (
        "gpt-${STOP}",
        "Say ${MODEL}.",
        {"stop": ["end"]},
    )


def test_an_unset_variable_is_a_fault(folder: Path) -> None:
    assert (
        find_faults(folder, {**GOOD, "model": "${ABSENT}"})[0][2]
        == "the variable ABSENT is not set"
    )


def test_what_has_no_effect_is_warned_of(folder: Path) -> None:
    agent = read_agent(
        folder,
        agent_id="gpt-5-helper",
        resources=["knowledge_base"],
        resource_config={"memory": {"required": False}},
        embedding_model="x",
        allowed_regular_tools=["search_knowledge_base"],
        allowed_mcp_servers={
            "wiki": {"allowed_mcp_tools": ["read"], "cached_mcp_tools": ["read", "raed"]},
            "absent": {},
        },
    )
    warnings = collect_agent_warnings(agent, frozenset({"wiki"}))
    assert len(warnings) == 7
    for expected in (
        "Open WebUI",
        "resource_config.memory has no effect",
        "knowledge_base",
        "search_knowledge_base",
        "embedding_model",
        "absent are not defined",
        "cached_mcp_tools of wiki names raed",
    ):
        assert any(expected in warning for warning in warnings), expected
    assert collect_agent_warnings(read_agent(folder), frozenset()) == []


LEGACY: list[dict[str, Any]] = [
    {
        "agent_id": "research_agent",
        "system_prompt_file": "a.txt",
        "allowed_regular_tools": ["get_current_datetime"],
        "allowed_mcp_servers": ["deepwiki", "fetch"],
        "allowed_mcp_tools": {
            "deepwiki": ["read_wiki_structure", "search_wiki"],
            "fetch": ["fetch_url"],
        },
        "provider": "azure_openai_cc",
    },
    {
        "agent_id": "mcp_agent",
        "system_prompt_file": "a.txt",
        "allowed_regular_tools": [],
        "allowed_mcp_servers": ["deepwiki"],
        "allowed_mcp_tools": None,
        "provider": "azure_openai_cc",
    },
    {
        "agent_id": "regular_tools_only_agent",
        "system_prompt_file": "prompts/a.txt",
        "allowed_regular_tools": ["get_current_datetime", "add_two_numbers"],
        "allowed_mcp_servers": {},
        "provider": "azure_openai_cc",
    },
    {
        "agent_id": "cli_agent",
        "system_prompt_file": "a.txt",
        "allowed_regular_tools": ["get_current_datetime"],
        "allowed_mcp_servers": {"github": {"allowed_mcp_tools": ["get_me"]}},
        "provider": "ollama",
        "model": "qwen3:4b",
        "model_settings": {"num_ctx": 12000, "num_predict": 2000},
        "resources": ["memory"],
    },
    {
        "agent_id": "knowledge_agent",
        "system_prompt_file": "a.txt",
        "provider": "azure_openai_cc",
        "model": "gpt-4o-mini",
        "resources": ["memory", "knowledge_base"],
        "allowed_regular_tools": ["search_knowledge_base", "list_documents"],
        "allowed_mcp_servers": {},
        "resource_config": {
            "memory": {
                "compression": {
                    "enabled": True,
                    "threshold_tokens": 8000,
                    "archive_conversations": True,
                }
            },
            "knowledge_base": {
                "vector_provider": "pgvector",
                "chunk_size": 800,
                "search_triggers": ["last time"],
            },
        },
    },
]


def test_files_of_scottrbk_ai_agent_service_load_as_they_are(folder: Path) -> None:
    agents, faults = read(folder, LEGACY)
    assert faults == []
    assert [agent.agent_id for agent in agents] == [entry["agent_id"] for entry in LEGACY]


def test_a_wrong_field_hides_no_other_fault_of_its_agent(folder: Path) -> None:
    wrong = {
        **GOOD,
        "maxsteps": 1,
        "provider": "dmo",
        "allowed_regular_tools": ["calculator"],
        "resources": ["memry"],
        "type": "agnt",
    }
    found = find_faults(folder, GOOD, wrong)
    assert [(field, problem) for _, field, problem, _ in found] == [
        ("maxsteps", "this field is not known"),
        ("type", "'agnt' is not an agent type"),
        ("provider", "'dmo' is not a provider"),
        ("allowed_regular_tools", "'calculator' is not a tool"),
        ("resources", "'memry' is not a resource"),
        ("agent_id", "another agent has this id"),
    ]


def test_the_name_of_a_prompt_file_is_expanded(folder: Path) -> None:
    agents, faults = read(
        folder, [{"agent_id": "a", "system_prompt_file": "${WHICH}.txt"}], {"WHICH": "a"}
    )
    assert (faults, agents[0].system_prompt) == ([], "From a file.")
