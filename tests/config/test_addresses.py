"""Addresses of model servers, as portals and manuals show them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ai_agent_service.config.addresses import (
    AzureEndpoint,
    build_address_hint,
    is_azure,
    is_openai,
    join_path,
    normalize_base_url,
    normalize_ollama_url,
    parse_azure_endpoint,
)
from ai_agent_service.config.settings import Settings

AZURE = "https://x.openai.azure.com"
FOUNDRY = "https://x.services.ai.azure.com"


@pytest.mark.parametrize(
    ("pasted", "base"),
    [
        ("http://h:1/v1", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        (" http://h:1//v1// \n", "http://h:1/v1"),
        ("http://h:1/v1#top", "http://h:1/v1"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1"),
        ("http://h:1/v1/chat/completions/", "http://h:1/v1"),
        ("http://h:1/v1/chat/completions?tenant=a", "http://h:1/v1?tenant=a"),
        ("http://h:1/v1/completions", "http://h:1/v1"),
        ("http://h:1/v1/responses", "http://h:1/v1"),
        ("http://h:1/v1/models", "http://h:1/v1"),
        ("http://h:1/v1/embeddings", "http://h:1/v1"),
        ("http://h:1/v1/chat", "http://h:1/v1"),
        ("http://h:1/chat/completions", "http://h:1"),
        ("http://h:1/models", "http://h:1"),
        ("http://h:1", "http://h:1"),
        ("http://h:1/", "http://h:1"),
        ("https://h/gateway/chat", "https://h/gateway/chat"),
        ("https://h/hub/models", "https://h/hub/models"),
        ("https://h/api/paas/v4/chat/completions", "https://h/api/paas/v4"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai"),
        ("https://h/v1beta/openai/chat/completions", "https://h/v1beta/openai"),
        ("https://h/v1beta/openai/models", "https://h/v1beta/openai"),
        ("https://api.openai.com", "https://api.openai.com/v1"),
        ("https://eu.api.openai.com/", "https://eu.api.openai.com/v1"),
        ("https://api.openai.com/v1/responses", "https://api.openai.com/v1"),
        ("https://openrouter.ai", "https://openrouter.ai/api/v1"),
        ("https://openrouter.ai/api/v1/chat/completions", "https://openrouter.ai/api/v1"),
        (AZURE, f"{AZURE}/openai/v1"),
        (f"{AZURE}/openai", f"{AZURE}/openai/v1"),
        (f"{AZURE}/openai/v1/chat/completions", f"{AZURE}/openai/v1"),
    ],
)
def test_the_base_address_is_found_in_the_address_of_an_operation(pasted: str, base: str) -> None:
    assert normalize_base_url(pasted) == base
    assert Settings.model_validate({"openai_base_url": pasted}).openai_base_url == base
    assert Settings.model_validate({"openrouter_base_url": pasted}).openrouter_base_url == base


@pytest.mark.parametrize(
    "pasted", [f"{AZURE}/openai/deployments/gpt/chat/completions?api-version=2024-10-21"]
)
def test_an_azure_deployment_for_another_provider_is_a_fault_with_the_remedy(pasted: str) -> None:
    with pytest.raises(ValidationError, match="AZURE_OPENAI_ENDPOINT"):
        Settings.model_validate({"openai_base_url": pasted})


@pytest.mark.parametrize("pasted", ["http://", "https:///v1", "http://[::1/v1", "localhost:11434"])
def test_an_address_without_a_host_is_a_fault(pasted: str) -> None:
    for name in ("openai_base_url", "ollama_base_url", "azure_openai_endpoint"):
        with pytest.raises(ValidationError):
            Settings.model_validate({name: pasted})


@pytest.mark.parametrize(
    ("pasted", "endpoint"),
    [
        ("", AzureEndpoint("")),
        (AZURE, AzureEndpoint(AZURE)),
        (f"{AZURE}/", AzureEndpoint(AZURE)),
        (f"{AZURE}/openai", AzureEndpoint(AZURE)),
        (f"{AZURE}/openai/v1/", AzureEndpoint(AZURE)),
        (f"{AZURE}/openai/v1/chat/completions", AzureEndpoint(AZURE)),
        (f"{AZURE}/openai/v1/responses", AzureEndpoint(AZURE)),
        (
            f"{AZURE}/openai/v1/responses?api-version=preview",
            AzureEndpoint(AZURE, api_version="preview"),
        ),
        (
            f"{AZURE}/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
            AzureEndpoint(AZURE, "gpt-4o", "2024-10-21"),
        ),
        (
            f"{AZURE}/openai/deployments/my%20own/completions?api-version=2024-10-21",
            AzureEndpoint(AZURE, "my own", "2024-10-21"),
        ),
        (f"{AZURE}/openai/deployments/gpt-4o", AzureEndpoint(AZURE, "gpt-4o")),
        (
            f"{AZURE}/openai/responses?api-version=2025-04-01-preview",
            AzureEndpoint(AZURE, api_version="2025-04-01-preview"),
        ),
        (f"{AZURE}/chat/completions", AzureEndpoint(AZURE)),
        (
            f"{FOUNDRY}/models/chat/completions?api-version=2024-05-01-preview",
            AzureEndpoint(FOUNDRY),
        ),
        (f"{FOUNDRY}/models", AzureEndpoint(FOUNDRY)),
        (f"{FOUNDRY}/api/projects/mine", AzureEndpoint(FOUNDRY)),
        (f"{FOUNDRY}/api/projects/mine/openai/v1/responses", AzureEndpoint(FOUNDRY)),
        (
            "https://x.cognitiveservices.azure.com/openai/deployments/d/chat/completions"
            "?api-version=2025-01-01-preview",
            AzureEndpoint("https://x.cognitiveservices.azure.com", "d", "2025-01-01-preview"),
        ),
        ("https://gateway/team/openai/v1", AzureEndpoint("https://gateway/team")),
        (
            "https://gateway/openai/openai/deployments/d?api-version=2024-10-21",
            AzureEndpoint("https://gateway/openai", "d", "2024-10-21"),
        ),
    ],
)
def test_the_parts_of_an_azure_address_are_found(pasted: str, endpoint: AzureEndpoint) -> None:
    assert parse_azure_endpoint(pasted) == endpoint


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "/",
        "/v1",
        "/v1/",
        "/v1/models",
        "/v1/chat/completions",
        "/api",
        "/api/",
        "/api/chat",
        "/api/generate",
        "/api/tags",
    ],
)
@pytest.mark.parametrize("base", ["http://localhost:11434", "https://h/api/ollama"])
def test_the_address_of_an_ollama_server_is_found(base: str, ending: str) -> None:
    assert normalize_ollama_url(base + ending) == base
    assert Settings.model_validate({"ollama_base_url": base + ending}).ollama_base_url == base


@pytest.mark.parametrize(
    ("url", "openai", "azure"),
    [
        ("https://api.openai.com/v1", True, False),
        ("https://eu.api.openai.com/v1", True, False),
        ("https://API.OpenAI.com./v1", True, False),
        (AZURE, False, True),
        (FOUNDRY, False, True),
        ("https://x.cognitiveservices.azure.com/", False, True),
        ("https://x.openai.azure.us/", False, True),
        ("https://x.openai.azure.cn/", False, True),
        ("https://eastus.api.cognitive.microsoft.com/", False, True),
        ("https://api.openai.com.example.org/v1", False, False),
        ("https://evilapi.openai.com/v1", False, False),
        ("https://example.org/api.openai.com", False, False),
        ("https://openai.azure.com.example.org", False, False),
        ("http://[::1/v1", False, False),
        ("", False, False),
    ],
)
def test_openai_and_azure_are_known_by_their_hosts(url: str, openai: bool, azure: bool) -> None:
    assert (is_openai(url), is_azure(url)) == (openai, azure)


def test_a_path_is_joined_before_the_query() -> None:
    assert join_path("http://h/v1/", "/models") == "http://h/v1/models"
    assert join_path("http://h/v1?a=b", "/models") == "http://h/v1/models?a=b"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        (None, ""),
        ("http://h/v1", "Check X."),
        ("http://h/api/v4", "Check X."),
        ("http://h/v1beta/openai", "Check X."),
        ("http://h", "Check X: it usually ends with /v1."),
        ("http://h/vendor", "Check X: it usually ends with /v1."),
    ],
)
def test_a_hint_names_the_variable_and_the_version_that_is_missing(
    url: str | None, hint: str
) -> None:
    assert build_address_hint("X", url) == hint


@given(st.from_regex(r"\Ahttps?://[a-z]{1,5}(/[a-z0-9]{0,9}){0,4}(\?[a-z=]*)?\Z"))
def test_a_normalized_address_stays_as_it_is(url: str) -> None:
    base = normalize_base_url(url)
    assert normalize_base_url(base) == base
