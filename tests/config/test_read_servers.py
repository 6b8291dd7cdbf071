"""mcp.json: both forms of it, its variables, and what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.config.read_servers import ServerDefinitions, read_servers
from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.errors import Fault

SECRET = "canary-0123456789"


def read(folder: Path, content: Any, **environment: str) -> tuple[ServerDefinitions, list[Fault]]:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "mcp.json").write_text(text, encoding="utf-8")
    return read_servers(folder / "mcp.json", environment)


def one(folder: Path, entry: dict[str, Any], **environment: str) -> ServerDefinition:
    servers, faults = read(folder, [{"server_label": "s", **entry}], **environment)
    assert faults == []
    (definition,) = servers.definitions
    return definition


def find_faults(folder: Path, *entries: Any) -> list[tuple[str, str, str, str]]:
    _, faults = read(folder, list(entries))
    return [(fault.where, fault.field, fault.problem, fault.remedy) for fault in faults]


def test_both_forms_define_the_same(tmp_path: Path) -> None:
    ours, faults = read(
        tmp_path,
        [
            {
                "server_label": "wiki",
                "server_url": "https://example.org/mcp",
                "header": {"Authorization": "Bearer ${KEY}"},
            },
            {
                "server_label": "time",
                "command": "uvx",
                "args": ["mcp-server-time"],
                "env": {"TZ": "${ZONE}"},
                "cwd": "/tmp",
            },
        ],
        KEY=SECRET,
        ZONE="UTC",
    )
    theirs, more = read(
        tmp_path,
        {
            "mcpServers": {
                "wiki": {
                    "url": "https://example.org/mcp",
                    "headers": {"Authorization": "Bearer ${KEY}"},
                },
                "time": {
                    "command": "uvx",
                    "args": ["mcp-server-time"],
                    "env": {"TZ": "${ZONE}"},
                    "cwd": "/tmp",
                },
            }
        },
        KEY=SECRET,
        ZONE="UTC",
    )
    assert faults == more == []
    assert ours == theirs
    assert ours.labels == {"wiki", "time"}
    wiki, time = ours.definitions
    assert (wiki.server_url, wiki.header, wiki.command) == (
        "https://example.org/mcp",
        {"Authorization": f"Bearer {SECRET}"},
        None,
    )
    assert (time.command, time.args, time.env, time.cwd) == (
        "uvx",
        ("mcp-server-time",),
        {"TZ": "UTC"},
        "/tmp",
    )
    assert (wiki.off_reason, time.off_reason) == (None, None)


def test_an_absent_file_defines_none(tmp_path: Path) -> None:
    assert read_servers(tmp_path / "mcp.json", {}) == (ServerDefinitions(), [])


@pytest.mark.parametrize("content", ["{", "5", '{"server": {}}', "null"])
def test_anything_else_is_one_fault(tmp_path: Path, content: str) -> None:
    servers, faults = read(tmp_path, content)
    assert (servers, len(faults)) == (ServerDefinitions(), 1)


def test_an_empty_list_for_an_object_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path, {"mcpServers": []}) == (ServerDefinitions(), [])


def test_variables_are_filled_in_once_in_address_header_arguments_and_environment(
    tmp_path: Path,
) -> None:
    variables = {"HOST": "example.org", "KEY": "${NEVER}", "DIR": "/data"}
    http = one(
        tmp_path, {"server_url": "https://${HOST}/mcp", "header": {"X-Key": "${KEY}"}}, **variables
    )
    assert (http.server_url, http.header) == ("https://example.org/mcp", {"X-Key": "${NEVER}"})
    stdio = one(
        tmp_path,
        {"command": "${DIR}/serve", "args": ["--dir=${DIR}"], "env": {"KEY": "${KEY}"}},
        **variables,
    )
    assert (stdio.command, stdio.args, stdio.env) == (
        "/data/serve",
        ("--dir=/data",),
        {"KEY": "${NEVER}"},
    )


@pytest.mark.parametrize(
    ("entry", "transport"),
    [
        (
            {"server_url": "https://example.org", "header": {"Authorization": "Bearer ${KEY}"}},
            "http",
        ),
        ({"server_url": "${KEY}/mcp"}, "http"),
        ({"server_url": "https://${KEY}.example.org", "transport": "sse"}, "sse"),
        ({"command": "serve", "args": ["${KEY}"]}, "stdio"),
        ({"command": "serve", "env": {"KEY": "${KEY}"}}, "stdio"),
    ],
)
def test_a_variable_that_is_not_set_turns_the_server_off_and_keeps_nothing_of_it(
    tmp_path: Path, entry: Any, transport: str
) -> None:
    definition = one(tmp_path, entry)
    assert (definition.off_reason, definition.missing, definition.transport) == (
        "KEY is not set.",
        ("KEY",),
        transport,
    )
    assert "${" not in repr(definition)
    assert (
        definition.server_url,
        definition.header,
        definition.command,
        definition.args,
        definition.env,
    ) == (None, {}, None, (), {})


def test_all_missing_variables_are_named_and_other_faults_are_still_told(tmp_path: Path) -> None:
    assert (
        one(tmp_path, {"command": "x", "args": ["${B}", "${A}"]}).off_reason
        == "A and B are not set."
    )
    [(_, field, problem, _)] = find_faults(
        tmp_path, {"server_label": "s", "server_url": "https://${A}", "header": "Bearer ${B}"}
    )
    assert (field, problem) == ("header", "Input should be a valid dictionary")


def test_what_variables_held_is_remembered_as_secret_and_never_shown(tmp_path: Path) -> None:
    definition = one(
        tmp_path,
        {"command": "x", "env": {"A": "${LONG}", "B": "${SHORT}", "C": "plain"}},
        LONG=SECRET,
        SHORT="8080",
    )
    assert definition.secrets == (SECRET,)
    assert "secrets" not in repr(definition)


def test_what_an_address_makes_of_a_secret_is_a_secret_too(tmp_path: Path) -> None:
    definition = one(
        tmp_path, {"server_url": "https://x", "header": {"X-Key": "${KEY}"}}, KEY="canary 77/x"
    )
    assert set(definition.secrets) == {
        "canary 77/x",
        "canary%2077/x",
        "canary%2077%2Fx",
        "canary+77%2Fx",
    }


def test_only_keys_are_kept_out_of_what_tools_return(tmp_path: Path) -> None:
    entry = {
        "command": "x",
        "args": ["${DOCUMENTS}"],
        "env": {"A": "${ITS_TOKEN}", "B": "${REGION}"},
    }
    definition = one(tmp_path, entry, DOCUMENTS="/srv/documents", ITS_TOKEN=SECRET, REGION="europe")
    assert set(definition.secrets) >= {"/srv/documents", SECRET, "europe"}
    assert definition.credentials == (SECRET,)
    assert one(
        tmp_path, {"server_url": "https://x", "header": {"X-A": "${ANY}"}}, ANY=SECRET
    ).credentials == (SECRET,)


def test_credentials_that_stand_in_the_file_are_secrets_too(tmp_path: Path) -> None:
    http = one(
        tmp_path,
        {
            "server_url": "https://x",
            "header": {"Authorization": f"Bearer {SECRET}", "Accept-Language": "german"},
        },
    )
    stdio = one(tmp_path, {"command": "x", "env": {"GITHUB_TOKEN": SECRET, "LANGUAGE": "german"}})
    assert http.secrets == stdio.secrets == (SECRET,)


def test_the_forms_of_variables_of_other_hosts_are_understood(tmp_path: Path) -> None:
    entry = {"command": "x", "args": ["${env:A}-${B:-c d}-${A:-e}-${B:-}"]}
    assert one(tmp_path, entry, A="a").args == ("a-c d-a-",)
    assert one(tmp_path, {"command": "x", "env": {"A": "${env:A}"}}).off_reason == "A is not set."


@pytest.mark.parametrize("placeholder", ["${}", "${input:token}"])
def test_a_placeholder_of_another_kind_is_a_fault_and_never_sent(
    tmp_path: Path, placeholder: str
) -> None:
    url = "https://x"
    for entry in (
        {"server_url": f"{url}/{placeholder}"},
        {"server_url": url, "header": {"A": placeholder}},
        {"command": "x", "env": {"A": placeholder}},
    ):
        [(where, field, problem, remedy)] = find_faults(tmp_path, {"server_label": "s", **entry})
        assert (where, field) == ("server 's'", list(entry)[-1])
        assert (problem, remedy[:13]) == (
            f"{placeholder} is not a variable that is filled in here",
            "Write ${NAME}",
        )
    assert one(tmp_path, {"command": "sh", "args": ["-c", f"echo {placeholder}"]}).args == (
        "-c",
        f"echo {placeholder}",
    )


def test_every_fault_of_every_server_is_told_with_its_place(tmp_path: Path) -> None:
    found = find_faults(
        tmp_path,
        {"server_label": "a", "server_url": "ftp://x", "headr": {}},
        {"server_label": "b"},
        {"server_label": "c", "server_url": "https://x", "command": "y"},
        {"server_url": "https://x"},
        {"server_label": "a", "command": "x"},
        {"server_label": " ", "command": "x"},
        {"server_label": "d", "command": "x", "header": {"A": "b"}},
        {"server_label": "e", "server_url": "https://x", "args": ["y"]},
        {"server_label": "f", "server_url": "https://x", "header": {"A": "b\r\nC: d"}},
        {"server_label": "g", "server_url": "https://x", "header": {"A:": "b"}},
        {"server_label": "h", "command": "x\0"},
        {"server_label": "i", "command": " "},
        {"server_label": "j", "command": "x", "type": "websocket"},
        {"server_label": "k", "command": "x", "transport": "http"},
        {"server_label": "l", "server_url": "https://x", "url": "https://y"},
        "m",
    )
    assert [(where, field, problem) for where, field, problem, _ in found] == [
        ("server 'a'", "headr", "this field is not known"),
        ("server 'a'", "server_url", "an address beginning with http:// or https:// is needed"),
        ("server 'b'", "", "it needs either a server_url or a command"),
        ("server 'c'", "", "it needs either a server_url or a command, not both"),
        ("server number 4", "server_label", "this field is missing"),
        ("server 'a'", "server_label", "another server has this label"),
        (
            "server ' '",
            "server_label",
            "a label is not blank",
        ),
        ("server 'd'", "", "header belongs to a server_url"),
        ("server 'e'", "", "args, env and cwd belong to a command"),
        (
            "server 'f'",
            "header",
            "the value of A has a line break or a character that no header may have",
        ),
        ("server 'g'", "header", "a header's name has letters, digits and - only"),
        ("server 'h'", "command", "a text in it has the character NUL"),
        ("server 'i'", "", "command is empty"),
        ("server 'j'", "type", "'websocket' is not a transport"),
        ("server 'k'", "", "the transport http does not go with a command"),
        ("server 'l'", "url", "url and server_url are both given"),
        ("server number 16", "", "this is not an object"),
    ]
    assert found[0][3] == "Did you mean 'header'?"


def test_faults_do_not_repeat_what_was_given(tmp_path: Path) -> None:
    _, faults = read(
        tmp_path,
        [{"server_label": "s", "server_url": f"{SECRET}://x", "header": {"A": f"{SECRET}\n"}}],
    )
    assert len(faults) == 2
    assert SECRET not in "".join(str(fault) for fault in faults)


def test_a_file_shared_with_other_hosts_loads_and_says_what_it_does_not_know(
    tmp_path: Path,
) -> None:
    servers, faults = read(
        tmp_path,
        {
            "mcpServers": {
                "a": {
                    "type": "http",
                    "url": "https://x",
                    "alwaysAllow": ["y"],
                    "disabledTools": ["z"],
                },
                "b": {
                    "type": "stdio",
                    "command": "x",
                    "env": {"PORT": 8080, "ON": True},
                    "disabled": True,
                    "args": None,
                },
                "c": {"type": "streamable-http", "url": "https://x", "description": "C"},
                "d": {"transport": "sse", "url": "https://x"},
            }
        },
    )
    assert faults == []
    assert [definition.transport for definition in servers.definitions] == [
        "http",
        "stdio",
        "http",
        "sse",
    ]
    assert servers.definitions[1].env == {"PORT": "8080", "ON": "true"}
    assert servers.definitions[1].off_reason == "It is disabled in the MCP configuration."
    assert servers.definitions[0].exclude_tools == ("z",)
    assert servers.warnings == (
        "MCP server 'a': without effect here: alwaysAllow (it grants nothing: agents have what"
        " allowed_mcp_servers names)",
    )


def test_the_form_of_visual_studio_code_is_read(tmp_path: Path) -> None:
    servers, faults = read(
        tmp_path, {"inputs": [], "servers": {"a": {"type": "stdio", "command": "x"}}}
    )
    assert faults == []
    assert servers.labels == {"a"}


def test_openais_own_list_form_is_read_and_approval_is_kept_and_warned_of(tmp_path: Path) -> None:
    entry = {
        "type": "mcp",
        "server_label": "s",
        "server_url": "https://x",
        "server_description": "S",
        "headers": {"A": "b"},
    }
    servers, faults = read(
        tmp_path, [{**entry, "require_approval": {"never": {"tool_names": ["x"]}}}]
    )
    assert faults == []
    assert servers.definitions[0].require_approval == {"never": {"tool_names": ["x"]}}
    assert (servers.definitions[0].transport, servers.definitions[0].header) == (None, {"A": "b"})
    assert "require_approval is kept" in servers.warnings[0]
    assert read(tmp_path, [{**entry, "require_approval": "never"}])[0].warnings == ()
