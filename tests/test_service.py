"""The composition root: what it refuses, and which provider `auto` is."""

from pathlib import Path
from typing import Any

import pytest

from app.core.errors import ConfigError, ServerBusy
from app.service import open_service
from tests.scripted import Script
from tests.service import AGENT, configuration
from tests.upstream import Upstream, reply

AUTO: dict[str, Any] = {"agent_id": "a", "system_prompt": "x", "provider": "auto"}


def test_names_that_nothing_has_are_faults_with_the_nearest_name(tmp_path: Path) -> None:
    agent = {**AGENT, "type": "agnet", "provider": "openrouterr", "allowed_regular_tools": ["calculator", "calculate"]}
    with pytest.raises(ConfigError) as caught:
        configuration(tmp_path, agents=[agent], default_provider="olama")
    assert [(fault.field, fault.problem, fault.remedy) for fault in caught.value.faults] == [
        ("allowed_regular_tools", "'calculator' is not a tool", "Did you mean 'calculate'?"),
        ("provider", "'openrouterr' is not a provider", "Did you mean 'openrouter'?"),
        ("type", "'agnet' is not an agent type", "Did you mean 'agent'?"),
        ("DEFAULT_PROVIDER", "'olama' is not a provider", "Did you mean 'ollama'?"),
    ]


def test_faults_of_all_files_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        configuration(tmp_path, agents=[{**AGENT, "provider": "nothing"}, {"agent_id": "b"}])
    assert sorted(Path(fault.file).name for fault in caught.value.faults) == ["agent_config.json", "agent_config.json", "mcp.json"]


@pytest.mark.parametrize(
    ("settings", "provider"),
    [
        ({"default_provider": "ollama", "openai_api_key": "k"}, "ollama"),
        ({"azure_openai_api_key": "k", "azure_openai_endpoint": "https://x", "openrouter_api_key": "k"}, "azure_openai"),
        ({"azure_openai_api_key": "k", "openrouter_api_key": "k", "openai_api_key": "k"}, "openrouter"),
        ({"openai_api_key": "k"}, "openai"),
        ({"openai_base_url": "http://127.0.0.1:1/v1"}, "openai"),
        ({"ollama_base_url": "http://127.0.0.1:1"}, "demo"),
    ],
)
async def test_auto_is_the_first_provider_that_is_configured(tmp_path: Path, settings: dict[str, Any], provider: str) -> None:
    found = configuration(tmp_path, agents=[AUTO], **{"default_provider": None, "ollama_base_url": "http://127.0.0.1:1", **settings})
    async with open_service(found) as service:
        assert (service.auto_provider, service.agent("a").parts.provider.name) == (provider, provider)


@pytest.mark.parametrize(
    ("models", "provider"), [([{"name": "nomic-embed-text"}, {"name": "llama3:8b"}], "ollama"), ([{"name": "nomic-embed-text"}], "demo")]
)
async def test_auto_is_an_ollama_that_answers_and_has_a_chat_model(tmp_path: Path, models: list[dict[str, str]], provider: str) -> None:
    async with Upstream(reply(body={"models": models})) as ollama:
        found = configuration(tmp_path, agents=[AUTO], default_provider=None, ollama_base_url=ollama.url)
        async with open_service(found) as service:
            agent = service.agent("a")
            assert agent.parts.provider.name == provider
            assert await agent.model() == ("llama3:8b" if provider == "ollama" else "demo")


async def test_as_many_runs_as_allowed_go_on_at_once(tmp_path: Path) -> None:
    async with open_service(configuration(tmp_path, Script([]), max_concurrent_requests=1)) as service:
        with service.run_slot(), pytest.raises(ServerBusy) as caught, service.run_slot():
            pass
        assert caught.value.retry_after == 1
        with service.run_slot():
            assert service.runs == 1
        assert service.runs == 0
