"""Azure OpenAI's addresses and key."""

import pytest

from ai_agent_service.core.errors import ProviderNotConfiguredError, ProviderRefusedError
from ai_agent_service.providers.azure import AzureOpenAI
from ai_agent_service.providers.http import HttpClient
from tests.support.fake_upstream import Upstream, reply, says
from tests.support.provider_requests import question, setup, text


def azure(
    endpoint: str | None,
    version: str | None = None,
    http: HttpClient | None = None,
    key: str | None = "0a1b2c3d",
) -> AzureOpenAI:
    return AzureOpenAI.from_setup(
        setup(
            http,
            azure_openai_endpoint=endpoint,
            azure_openai_api_key=key,
            azure_openai_api_version=version,
            azure_openai_model_list=("one", "two"),
        )
    )


@pytest.mark.parametrize(
    ("version", "path"),
    [
        (None, "/openai/v1/chat/completions"),
        ("v1", "/openai/v1/chat/completions"),
        ("preview", "/openai/v1/chat/completions?api-version=preview"),
        ("2024-10-21", "/openai/deployments/some-model/chat/completions?api-version=2024-10-21"),
        (
            "2025-01-01-preview",
            "/openai/deployments/some-model/chat/completions?api-version=2025-01-01-preview",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["", "/", "/openai", "/openai/v1/"])
async def test_a_question_goes_to_the_address_of_its_api_version(
    version: str | None, path: str, ending: str
) -> None:
    async with Upstream(says("Hi")) as upstream, HttpClient() as http:
        assert await text(azure(upstream.url + ending, version, http)) == "Hi"
    request = upstream.requests[0]
    assert request.path == path
    assert request.headers["api-key"] == "0a1b2c3d"
    assert "authorization" not in request.headers
    assert request.json["model"] == "some-model"


async def test_the_name_of_a_deployment_cannot_leave_its_place_in_the_address() -> None:
    async with Upstream(says("Hi")) as upstream, HttpClient() as http:
        await text(azure(upstream.url, "2024-10-21", http), question(model="../a b?c#d/é"))
    assert (
        upstream.requests[0].path
        == "/openai/deployments/..%2Fa%20b%3Fc%23d%2F%C3%A9/chat/completions?api-version=2024-10-21"
    )


async def test_the_key_is_cut_from_azures_errors() -> None:
    async with (
        Upstream(
            reply(403, {"error": {"code": "403", "message": "Invalid key 0a1b2c3d."}})
        ) as upstream,
        HttpClient() as http,
    ):
        with pytest.raises(ProviderRefusedError, match=r": Invalid key \[redacted\]\.$"):
            await text(azure(upstream.url, None, http))


@pytest.mark.parametrize(
    ("endpoint", "key", "missing"),
    [
        ("https://x.openai.azure.com", "k", ()),
        (None, "k", ("AZURE_OPENAI_ENDPOINT",)),
        ("https://x.openai.azure.com", None, ("AZURE_OPENAI_API_KEY",)),
        (None, None, ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT")),
    ],
)
def test_what_is_missing_is_named(
    endpoint: str | None, key: str | None, missing: tuple[str, ...]
) -> None:
    assert azure(endpoint, key=key).missing == missing


async def test_the_models_are_those_of_the_settings() -> None:
    provider = azure("https://x.openai.azure.com")
    assert provider.model_list == ("one", "two")
    with pytest.raises(ProviderNotConfiguredError, match="AZURE_OPENAI_DEFAULT_MODEL"):
        await provider.default_model()


@pytest.mark.parametrize(
    ("version", "path"),
    [
        (None, "/openai/v1/models"),
        ("preview", "/openai/v1/models?api-version=preview"),
        ("2024-10-21", "/openai/models?api-version=2024-10-21"),
    ],
)
async def test_whether_it_is_there_is_asked_by_its_list_of_models(
    version: str | None, path: str
) -> None:
    async with Upstream(reply(200, {"data": []})) as upstream, HttpClient() as http:
        await azure(upstream.url, version, http).ping(timeout=5)
    request = upstream.requests[0]
    assert (request.method, request.path, request.headers["api-key"]) == ("GET", path, "0a1b2c3d")
