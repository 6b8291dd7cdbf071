"""The composition root: what it refuses, and which provider `auto` is."""

from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.core.errors import ConfigError
from ai_agent_service.runtime.opening import open_service
from tests.support.fake_upstream import Upstream, reply
from tests.support.service import AGENT, configuration

AUTO: dict[str, Any] = {"agent_id": "a", "system_prompt": "x", "provider": "auto"}


def test_names_that_nothing_has_are_faults_with_the_nearest_name(tmp_path: Path) -> None:
    agent = {
        **AGENT,
        "type": "agnet",
        "provider": "openrouterr",
        "allowed_regular_tools": ["calculator", "calculate"],
    }
    with pytest.raises(ConfigError) as caught:
        configuration(tmp_path, agents=[agent], default_provider="olama")
    assert [(fault.field, fault.problem, fault.remedy) for fault in caught.value.faults] == [
        ("allowed_regular_tools", "'calculator' is not a tool", "Did you mean 'calculate'?"),
        ("provider", "'openrouterr' is not a provider", "Did you mean 'openrouter'?"),
        ("type", "'agnet' is not an agent type", "Did you mean 'agent'?"),
        ("DEFAULT_PROVIDER", "'olama' is not a provider", "Did you mean 'ollama'?"),
    ]


@pytest.mark.parametrize("provider", ["openrouter", "ollama", "demo", "auto", "scripted"])
def test_the_responses_api_of_a_provider_without_one_is_a_fault(
    tmp_path: Path, provider: str
) -> None:
    fallback = [
        {"provider": "openai", "api": "responses"},
        {"provider": "demo", "api": "responses"},
    ]
    agent = {**AGENT, "provider": provider, "api": "responses", "fallback": fallback}
    with pytest.raises(ConfigError) as caught:
        configuration(tmp_path, agents=[agent])
    assert [(fault.field, fault.problem) for fault in caught.value.faults] == [
        ("api", f"the provider {provider!r} does not support the Responses API"),
        ("fallback.1.api", "the provider 'demo' does not support the Responses API"),
    ]
    assert "openai" in caught.value.faults[0].remedy


def test_faults_of_all_files_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        configuration(tmp_path, agents=[{**AGENT, "provider": "nothing"}, {"agent_id": "b"}])
    assert sorted(Path(fault.file).name for fault in caught.value.faults) == [
        "agent_config.json",
        "agent_config.json",
        "mcp.json",
    ]


@pytest.mark.parametrize(
    ("settings", "provider"),
    [
        ({"default_provider": "ollama", "openai_api_key": "k"}, "ollama"),
        (
            {
                "azure_openai_api_key": "k",
                "azure_openai_endpoint": "https://x",
                "openrouter_api_key": "k",
            },
            "azure_openai",
        ),
        (
            {"azure_openai_api_key": "k", "openrouter_api_key": "k", "openai_api_key": "k"},
            "openrouter",
        ),
        ({"openai_api_key": "k"}, "openai"),
        ({"openai_base_url": "http://127.0.0.1:1/v1"}, "openai"),
        ({"ollama_base_url": "http://127.0.0.1:1"}, "demo"),
    ],
)
async def test_auto_is_the_first_provider_that_is_configured(
    tmp_path: Path, settings: dict[str, Any], provider: str
) -> None:
    found = configuration(
        tmp_path,
        agents=[AUTO],
        **{"default_provider": None, "ollama_base_url": "http://127.0.0.1:1", **settings},
    )
    async with open_service(found) as service:
        assert (service.auto_provider, service.catalog.get("a").parts.provider.name) == (
            provider,
            provider,
        )


@pytest.mark.parametrize(
    ("models", "provider"),
    [
        ([{"name": "nomic-embed-text"}, {"name": "llama3:8b"}], "ollama"),
        ([{"name": "nomic-embed-text"}], "demo"),
    ],
)
async def test_auto_is_an_ollama_that_answers_and_has_a_chat_model(
    tmp_path: Path, models: list[dict[str, str]], provider: str
) -> None:
    async with Upstream(reply(body={"models": models})) as ollama:
        found = configuration(
            tmp_path, agents=[AUTO], default_provider=None, ollama_base_url=ollama.url
        )
        async with open_service(found) as service:
            agent = service.catalog.get("a")
            assert agent.parts.provider.name == provider
            assert await agent.model() == ("llama3:8b" if provider == "ollama" else "demo")


def test_a_faulty_database_or_key_is_named_and_its_value_is_not(tmp_path: Path) -> None:
    forgetful = {
        **AGENT,
        "resources": ["memory"],
        "resource_config": {"memory": {"backend": "sqll", "compression": {"agent": "help"}}},
    }
    with pytest.raises(ConfigError) as caught:
        configuration(
            tmp_path,
            agents=[forgetful],
            database_url="mysql://canary",
            database_replica_url="sqlite:///canary.db",
            memory_encryption_keys="canary",
        )
    assert "canary" not in str(caught.value)
    assert [(fault.field, fault.problem) for fault in caught.value.faults] == [
        ("resource_config.memory.backend", "'sqll' is not a memory backend"),
        ("resource_config.memory.compression.agent", "'help' is not an agent"),
        ("DATABASE_REPLICA_URL", "only a PostgreSQL database has a replica"),
        (
            "DATABASE_URL",
            "this is neither sqlite:///FILE nor postgresql://USER:PASSWORD@HOST:5432/DATABASE",
        ),
        (
            "MEMORY_ENCRYPTION_KEYS",
            (
                "Key 1 is not a key: 32 bytes in base64 (43 or 44 characters) or 64 hex digits are"
                " expected"
            ),
        ),
    ]


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "sqlite:///{folder}/data/ai-agent-service.db"),
        ({"database_url": "sqlite:///here.db"}, "sqlite:///here.db"),
        (
            {"postgres_user": "me", "postgres_password": "a@b:c/d", "postgres_db": "db"},
            "postgresql://me:***@localhost:5432/db",
        ),
        (
            {"postgres_user": "me", "postgres_host": "::1", "postgres_port": 5433},
            "postgresql://me@[::1]:5433/me",
        ),
        (
            {"postgres_user": "me", "database_url": "postgres://you:secret@db/x?ssl=require"},
            "postgresql://you:***@db/x?sslmode=require",
        ),
        (
            {"database_url": "postgresql+psycopg://a:b@one:1,two:2/x"},
            "postgresql://a:***@one:1,two:2/x",
        ),
    ],
)
def test_the_database_is_that_of_the_settings(
    tmp_path: Path, settings: dict[str, Any], address: str
) -> None:
    found = configuration(tmp_path, agents=[{**AGENT, "resources": ["memory"]}], **settings)
    assert found.database == address.format(folder=tmp_path)
    assert configuration(tmp_path, **settings).database is None
