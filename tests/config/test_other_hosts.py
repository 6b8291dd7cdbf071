"""mcp.json as other hosts write it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai_agent_service.config.read_servers import ServerDefinitions, read_servers
from ai_agent_service.config.server_definition import ServerDefinition

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def read(folder: Path, content: Any, **environment: str) -> ServerDefinitions:
    (folder / "mcp.json").write_text(json.dumps(content), encoding="utf-8")
    servers, faults = read_servers(folder / "mcp.json", environment)
    assert faults == []
    return servers


def one(folder: Path, entry: Any, **environment: str) -> ServerDefinition:
    (definition,) = read(folder, {"mcpServers": {"s": entry}}, **environment).definitions
    return definition


HTTP = {"url": "https://x/mcp"}
STDIO = {"command": "npx", "args": ["-y", "x"], "env": {"A": "b"}}
FILES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Claude Desktop": ({"mcpServers": {"s": STDIO}, "globalShortcut": ""}, {"args": ("-y", "x")}),
    "Cursor": (
        {"mcpServers": {"s": {**STDIO, "type": "stdio", "envFile": ".env"}}},
        {"command": "npx"},
    ),
    "Visual Studio Code": (
        {"inputs": [{"id": "key"}], "servers": {"s": {"type": "http", **HTTP, "headers": {}}}},
        {"server_url": "https://x/mcp", "transport": "http"},
    ),
    "settings of Visual Studio Code": (
        {"mcp": {"servers": {"s": {"type": "sse", **HTTP}}}},
        {"transport": "sse"},
    ),
    "Windsurf": (
        {"mcpServers": {"s": {"serverUrl": "https://x/mcp", "disabledTools": ["a"]}}},
        {"server_url": "https://x/mcp", "exclude_tools": ("a",)},
    ),
    "Gemini CLI": (
        {
            "mcpServers": {
                "s": {
                    "httpUrl": "https://x/mcp",
                    "url": "https://x/sse",
                    "timeout": 600000,
                    "trust": True,
                    "includeTools": ["a", "b(x)"],
                    "excludeTools": ["b"],
                }
            }
        },
        {"server_url": "https://x/mcp", "include_tools": ("a", "b"), "exclude_tools": ("b",)},
    ),
    "Cline": (
        {
            "mcpServers": {
                "s": {
                    **HTTP,
                    "type": "streamableHttp",
                    "disabled": True,
                    "timeout": 60,
                    "autoApprove": ["a"],
                }
            }
        },
        {"transport": "http", "disabled": True},
    ),
    "LM Studio": ({"mcpServers": {"s": {**HTTP, "headers": {"A": "b"}}}}, {"header": {"A": "b"}}),
    "opencode, local": (
        {
            "mcp": {
                "s": {
                    "type": "local",
                    "command": ["npx", "-y", "x"],
                    "environment": {"A": "{env:KEY}"},
                    "enabled": False,
                }
            }
        },
        {"command": "npx", "args": ("-y", "x"), "env": {"A": "secret"}, "disabled": True},
    ),
    "opencode, remote": ({"mcp": {"s": {"type": "remote", **HTTP}}}, {"transport": None}),
    "Zed": (
        {"context_servers": {"s": {"command": {"path": "npx", "args": ["-y", "x"]}}}},
        {"command": "npx", "args": ("-y", "x")},
    ),
    "Continue": ({"mcpServers": [{"name": "s", **STDIO}]}, {"env": {"A": "b"}}),
    "Copilot agent": (
        {"mcpServers": {"s": {**STDIO, "type": "local", "tools": ["*"]}}},
        {"include_tools": None, "transport": "stdio"},
    ),
    "an address with leftovers of a command": (
        {"mcpServers": {"s": {**HTTP, "args": ["x"], "env": {}}}},
        {"args": ()},
    ),
}


@pytest.mark.parametrize("host", FILES)
def test_the_file_of_another_host_loads_as_it_is(tmp_path: Path, host: str) -> None:
    content, expected = FILES[host]
    servers = read(tmp_path, content, KEY="secret")
    (definition,) = servers.definitions
    assert definition.server_label == "s"
    assert {name: getattr(definition, name) for name in expected} == expected
    assert not definition.problem
    assert len(servers.warnings) <= 1


def test_fields_without_effect_are_named_once_with_the_reason(tmp_path: Path) -> None:
    entry = {**HTTP, "timeout": 60, "autoApprove": ["a"], "alwaysAllow": [], "trust": False, "x": 1}
    assert [*read(tmp_path, {"mcpServers": {"s": entry}}).warnings] == [
        "MCP server 's': without effect here: timeout (TOOL_EXECUTION_TIMEOUT bounds a call; hosts"
        " count it in seconds or milliseconds), autoApprove (it grants nothing: agents have what"
        " allowed_mcp_servers names), x (it is not known. Known are: args, command, cwd, disabled,"
        " disabledTools, enabledTools, env, environment, excludeTools, exclude_tools, header,"
        " headers, httpUrl, includeTools, include_tools, pin_tools, require_approval, serverUrl,"
        " server_url, tools, transport, transportType, type, url, workingDirectory)"
    ]


@pytest.mark.parametrize("entry", [5, None, {}, {"url": "ftp://x"}, {"url": "${input:key}/mcp"}])
def test_an_entry_that_cannot_be_used_is_off_and_says_why(tmp_path: Path, entry: Any) -> None:
    servers = read(tmp_path, {"mcpServers": {"odd": entry, "s": HTTP}})
    odd, good = servers.definitions
    assert (odd.off_reason or "").endswith(".")
    assert good.off_reason is None
    [warning] = servers.warnings
    assert warning == f"MCP server 'odd': it is off. {odd.off_reason}"


@pytest.mark.parametrize(
    ("text", "off_reason"),
    [
        ("${env:KEY}", None),
        ("${KEY}", None),
        ("${NONE:-default}", None),
        ("${env:NONE}", "NONE is not set."),
        (
            "${input:key}",
            "It needs ${input:key}, which only its host fills in; write ${NAME}, with the name of"
            " an environment variable.",
        ),
    ],
)
def test_variables_of_other_hosts_are_understood_or_named(
    tmp_path: Path, text: str, off_reason: str | None
) -> None:
    definition = one(tmp_path, {**HTTP, "headers": {"A": text}}, KEY="key-of-theirs")
    assert definition.off_reason == off_reason
    assert definition.header in ({}, {"A": "key-of-theirs"}, {"A": "default"})


LABELS = [
    "github.com/org/servers/tree/main/src/time",
    "@upstash/context7-mcp",
    "Größe 1",
    "🔧",
    "a" * 300,
]


@pytest.mark.parametrize("label", LABELS)
def test_a_label_may_have_any_characters(tmp_path: Path, label: str) -> None:
    assert read(tmp_path, {"mcpServers": {label: HTTP}}).labels == {label}


ENTRY: dict[str, Any] = {
    "type": "http",
    "url": "https://x/mcp",
    "headers": {"A": "b"},
    "excludeTools": ["forbidden"],
    "includeTools": ["allowed"],
    "disabled": False,
    "enabled": True,
    "autoApprove": ["forbidden"],
    "timeout": 5,
}


@given(st.sampled_from([*ENTRY, "command", "args", "env", "cwd", "x", "serverUrl"]), JSON)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_an_odd_field_refuses_no_file_and_gives_no_rights(
    tmp_path: Path, name: str, odd: Any
) -> None:
    servers = read(tmp_path, {"mcpServers": {"odd": {**ENTRY, name: odd}, "s": HTTP}})
    definition, other = servers.definitions
    assert (other.server_url, other.off_reason) == ("https://x/mcp", None)
    if definition.off_reason is None:
        assert not definition.allows("forbidden") or name == "excludeTools"
        assert definition.allows("allowed") or name in ("includeTools", "excludeTools")
        assert not definition.allows("another") or name == "includeTools"
