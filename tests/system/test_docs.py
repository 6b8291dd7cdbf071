"""The documentation: its examples run, its links lead somewhere."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from ai_agent_service.config.agent_definition import AgentDefinition, AllowedTools
from ai_agent_service.config.memory_definition import CompressionDefinition, MemoryDefinition
from ai_agent_service.config.read_servers import read_servers
from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.config.settings import load_settings
from ai_agent_service.core.errors import ServiceError
from ai_agent_service.evaluation.dataset import (
    Case,
    Expect,
    Faithfulness,
    GEval,
    Hallucination,
    TaskCompletion,
    ToolCorrectness,
    read_dataset,
)
from ai_agent_service.runtime.opening import open_service
from ai_agent_service.runtime.plugin_loader import Plugins, load_plugins
from ai_agent_service.server.application import create_app
from scripts.reference import fields_of, page
from tests.support.fake_provider import Script, calls, says
from tests.support.fake_upstream import Upstream, reply
from tests.support.service import AGENT, configuration, open_client

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

VARIABLES = (
    *("SERVICE_NAME", "SERVICE_VERSION", "HOST", "PORT", "LOG_LEVEL"),
    *("DATABASE_URL", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"),
    *("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "OLLAMA_BASE_URL"),
    *(
        "OPENROUTER_BASE_URL",
        "OPENROUTER_API_KEY",
        "OPENROUTER_DEFAULT_MODEL",
        "OPENROUTER_MODEL_LIST",
    ),
    *("GITHUB_TOKEN", "DEEPWIKI_API_KEY"),
    *("MEMORY_COMPRESSION_TOKEN_THRESHOLD", "MEMORY_CLEANUP_INTERVAL_HOURS"),
    *("MCP_TOOL_CACHE_TTL", "TOOL_EXECUTION_TIMEOUT"),
    *("EVALUATION_OUTPUT_DIR", "DEEPEVAL_TELEMETRY_OPT_OUT", "CONFIDENT_TRACING_ENABLED"),
    *("MAX_CONCURRENT_REQUESTS", "REQUEST_TIMEOUT"),
)
"""The variables that deployments of this kind of service set, and that have to be found under these
names."""


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    """The examples of docs/extending.md, each in the file that the page names."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    folder = tmp_path / "plugins"
    folder.mkdir()
    examples = re.findall(r"`plugins/(\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert [name for name, _ in examples] == ["dice.py", "groq.py", "echo.py", "notebook.py"]
    for name, source in examples:
        (folder / name).write_text(source, encoding="utf-8")
    found, faults = load_plugins(folder)
    assert faults == []
    return found


async def test_the_example_of_a_tool_runs(tmp_path: Path, plugins: Plugins) -> None:
    script = Script(
        calls(("roll_dice", {"sides": 6, "count": 3}), ("roll_dice", {"sides": 1})), says("rolled")
    )
    agent = {**AGENT, "allowed_regular_tools": ["roll_dice"]}
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[agent], plugins=plugins))
    ) as client:
        answer = (await client.post("/agents/helper/chat", json={"message": "Roll."})).json()
    results = {call["arguments"]: call["result"] for call in answer["tool_calls"]}
    rolled = json.loads(results['{"sides":6,"count":3}'])
    assert len(rolled) == 3
    assert all(1 <= number <= 6 for number in rolled)
    assert results['{"sides":1}'].startswith("Error: a die has 2 to 100 sides")


async def test_the_example_of_a_provider_answers(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (
        b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )
    async with Upstream(reply(body=said, content_type="text/event-stream")) as upstream:
        monkeypatch.setenv("GROQ_API_KEY", "k")
        monkeypatch.setenv("GROQ_BASE_URL", f"{upstream.url}/openai/v1")
        found = configuration(tmp_path, agents=[{**AGENT, "provider": "groq"}], plugins=plugins)
        async with open_client(create_app(found)) as client:
            answer = (
                await client.post(
                    "/agents/helper/chat",
                    json={"message": "Hi.", "model_settings": {"logit_bias": {"1": 1}}},
                )
            ).json()
    assert (answer["response"], answer["model_used"]) == ("hi", "llama-3.3-70b-versatile")
    [request] = upstream.requests
    assert (request.path, request.headers["authorization"]) == (
        "/openai/v1/chat/completions",
        "Bearer k",
    )
    assert "logit_bias" not in request.json


async def test_the_example_of_an_agent_type_answers(tmp_path: Path, plugins: Plugins) -> None:
    found = configuration(tmp_path, agents=[{**AGENT, "type": "echo"}], plugins=plugins)
    async with open_client(create_app(found)) as client:
        answer = (
            await client.post(
                "/v1/chat/completions",
                json={"model": "helper", "messages": [{"role": "user", "content": "Hello!"}]},
            )
        ).json()
    assert answer["choices"][0]["message"]["content"] == "Hello!"


async def test_the_example_of_a_memory_remembers(tmp_path: Path, plugins: Plugins) -> None:
    script = Script(says("Hello, Ada."), says("Ada."))
    agent = {
        **AGENT,
        "resources": ["memory"],
        "resource_config": {"memory": {"backend": "notebook"}},
    }
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[agent], plugins=plugins))
    ) as client:
        for message, user in (("I am Ada.", "a"), ("Who am I?", "a"), ("Who am I?", "b")):
            asked = {"message": message, "session_id": "s", "user_id": user}
            assert (await client.post("/agents/helper/chat", json=asked)).status_code == 200
        assert (await client.get("/agents/helper/conversations")).status_code == 404
    told = [[message.text for message in request.messages[1:]] for request in script.requests]
    assert told == [["I am Ada."], ["I am Ada.", "Hello, Ada.", "Who am I?"], ["Who am I?"]]


def test_the_entry_points_of_the_example_are_valid_toml() -> None:
    [example] = re.findall(
        r"```toml\n(.*?)```",
        (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert set(tomllib.loads(example)["project"]["entry-points"]) == {
        f"ai_agent_service.{kind}" for kind in ("tools", "providers", "agents", "memories")
    }


@pytest.mark.parametrize(
    ("page", "agents", "servers"),
    [
        ("README.md", 2, 2),
        ("docs/configuration.md", 3, 0),
        ("docs/mcp.md", 1, 4),
        ("docs/memory.md", 1, 0),
    ],
)
def test_the_agents_and_servers_that_pages_show_are_valid(
    tmp_path: Path, page: str, agents: int, servers: int
) -> None:
    seen = {"agents": 0, "servers": 0}
    for text in re.findall(
        r"```json\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
    ):
        value = json.loads(text)
        if "agent_id" in str(value):
            for agent in value if isinstance(value, list) else [value]:
                AgentDefinition.model_validate(agent)
                seen["agents"] += 1
        else:
            (tmp_path / "mcp.json").write_text(text, encoding="utf-8")
            found, faults = read_servers(
                tmp_path / "mcp.json", {"GITHUB_TOKEN": "x" * 9, "DEEPWIKI_API_KEY": "x" * 9}
            )
            assert (faults, found.warnings) == ([], ())
            seen["servers"] += len(found.definitions)
    assert seen == {"agents": agents, "servers": servers}


def test_the_page_on_mcp_describes_every_field_of_a_server() -> None:
    text = (ROOT / "docs" / "mcp.md").read_text(encoding="utf-8")
    fields = {*ServerDefinition.model_fields, *AllowedTools.model_fields} - {
        "missing",
        "problem",
        "secrets",
        "credentials",
        "written",
    }
    assert [name for name in sorted(fields) if f"`{name}`" not in text] == []


def test_the_page_on_memory_describes_every_field_of_it() -> None:
    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    fields = {
        *MemoryDefinition.model_fields,
        *(f"compression.{name}" for name in CompressionDefinition.model_fields),
    }
    unsaid = {"compression", "compression.prompt", "compression.archive_conversations"}
    assert [name for name in sorted(fields - unsaid) if f"`{name}`" not in text] == []


def test_the_shipped_servers_are_off_without_their_variables_and_on_with_them() -> None:
    with_keys, faults = read_servers(
        ROOT / "mcp.json", {"GITHUB_TOKEN": "x" * 9, "DEEPWIKI_API_KEY": "y" * 9}
    )
    without, more = read_servers(ROOT / "mcp.json", {})
    assert faults == more == []
    assert {
        server.server_label: server.off_reason for server in with_keys.definitions
    } == dict.fromkeys(("deepwiki", "github", "time", "fetch"))
    assert {server.server_label: server.off_reason for server in without.definitions} == {
        "deepwiki": "DEEPWIKI_API_KEY is not set.",
        "github": "GITHUB_TOKEN is not set.",
        "time": None,
        "fetch": None,
    }


def test_the_page_on_evaluation_describes_every_field_of_a_case() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    judged = (GEval, Faithfulness, Hallucination, TaskCompletion, ToolCorrectness)
    fields = {
        *Case.model_fields,
        *Expect.model_fields,
        *(name for kind in judged for name in kind.model_fields),
    } - {"line", "written"}
    assert [name for name in sorted(fields) if f"`{name}`" not in text] == []


def test_the_reference_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == page(), (
        "run: make reference"
    )


def test_the_reference_has_every_variable_that_deployments_set() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert [name for name in VARIABLES if f"`{name}`" not in text] == []


class Bare(BaseModel):
    """A model whose field has no description."""

    bare: str


def test_a_field_without_a_description_is_not_passed_over() -> None:
    with pytest.raises(LookupError, match=r"bare has no description"):
        fields_of(Bare)


def test_the_case_that_the_page_on_evaluation_has_judged_is_valid(tmp_path: Path) -> None:
    text = (
        (ROOT / "docs" / "evaluation.md")
        .read_text(encoding="utf-8")
        .split("\n## Judged metrics")[1]
    )
    (tmp_path / "cases.jsonl").write_text(
        text.split("```json\n")[1].split("```")[0], encoding="utf-8"
    )
    [case] = read_dataset(tmp_path / "cases.jsonl")
    assert (
        case.session_turns[0].expect.answer_relevancy is not None,
        len(case.session_turns[0].expect.g_eval),
    ) == (True, 1)


def test_the_page_on_architecture_names_files_that_exist_and_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "ai_agent_service"
    named = re.findall(r"`(\w[\w/]*(?:\.py|/))`", text)
    assert len(named) > 40
    assert [
        name for name in named if not ((package / name).exists() or (ROOT / name).exists())
    ] == []
    folders = {each.parent.name for each in package.glob("*/__init__.py")} - {"__pycache__"}
    assert folders - {name.rstrip("/") for name in named} == set()


def test_the_page_on_architecture_shows_the_layers_that_are_enforced() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [layers] = re.findall(r"^    __main__ .*\n    >.*$", text, re.MULTILINE)
    contract = project["tool"]["importlinter"]["contracts"][0]
    assert " ".join(layers.split()) == " > ".join(contract["layers"])


def test_the_api_page_names_every_code_of_an_error() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    classes = [ServiceError]
    for found in classes:
        classes += found.__subclasses__()
    inner = {"provider_error", "provider_refused"}
    assert [
        found.default_code
        for found in classes
        if found.default_code not in inner and f"`{found.default_code}`" not in text
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_a_heading_lead_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^):]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    assert [
        f"{file}#{anchor}"
        for file, anchor in links
        if anchor not in find_anchors(page.parent / file if file else page)
    ] == []


def find_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and GitLab make them, and the site as well."""
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


async def test_the_shipped_agents_are_usable_with_every_provider(tmp_path: Path) -> None:
    agents = json.loads((ROOT / "agent_config.json").read_text(encoding="utf-8"))
    assert [agent["agent_id"] for agent in agents] == ["research_agent", "cli_agent"]
    assert all(agent["provider"] == "auto" and "model" not in agent for agent in agents)
    for provider in load_plugins()[0].providers:
        found = configuration(
            tmp_path, agents=agents, default_provider=provider, prompts_dir=ROOT / "prompts"
        )
        async with open_service(found) as service:
            assert [agent.parts.provider.name for agent in service.catalog] == [provider, provider]


def test_the_proxies_of_the_install_page_wait_and_let_through_what_the_service_does() -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    defaults = load_settings()
    [size], [seconds] = (
        re.findall(r"client_max_body_size (\d+)m;", text),
        re.findall(r"proxy_read_timeout (\d+)s;", text),
    )
    [other] = re.findall(r"max_size (\d+)MiB", text)
    assert int(size) * 1024**2 == int(other) * 1024**2 == defaults.max_request_bytes
    assert int(seconds) > defaults.request_timeout
    assert "proxy_buffering off;" in text
    assert "flush_interval -1" in text
