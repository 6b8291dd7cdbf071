"""Models that an option names."""

from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.core.errors import ConfigError
from ai_agent_service.evaluation.model_option import find_model
from ai_agent_service.runtime.opening import open_service
from tests.support.service import configuration


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("demo", "demo:demo"),
        ("auto", "demo:demo"),
        ("scripted", "scripted:scripted-model"),
        ("ollama:qwen3:8b", "ollama:qwen3:8b"),
        ("azure_openai_cc:gpt", "azure_openai:gpt"),
        ("openai:local/model", "openai:local/model"),
    ],
)
async def test_a_model_is_named_by_its_provider_and_its_own_name(
    tmp_path: Path, written: str, shown: str
) -> None:
    settings: dict[str, Any] = {
        "azure_openai_api_key": "k",
        "azure_openai_endpoint": "http://127.0.0.1:1",
        "openai_base_url": "http://127.0.0.1:1/v1",
    }
    async with open_service(configuration(tmp_path, **settings)) as service:
        found = await find_model(service, written, "--judge")
        assert (found.label, (await find_model(service, found.label, "--judge")).label) == (
            shown,
            shown,
        )


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("openay:gpt", "--judge: 'openay' is not a provider. Did you mean 'openai'?"),
        ("", "--judge: '' is not a provider. Known are: auto, azure_openai"),
        ("openai:gpt", "--judge: openai cannot be asked without OPENAI_API_KEY."),
        ("openrouter", "--judge: openrouter cannot be asked without OPENROUTER_API_KEY."),
        ("ollama", "--judge: ollama"),
    ],
)
async def test_a_model_that_cannot_be_asked_is_a_fault(
    tmp_path: Path, written: str, told: str
) -> None:
    async with open_service(
        configuration(tmp_path, ollama_base_url="http://127.0.0.1:1")
    ) as service:
        with pytest.raises(ConfigError) as caught:
            await find_model(service, written, "--judge")
    assert str(caught.value).startswith(told)
