"""The Ollama server: its address and its models."""

import pytest

from ai_agent_service.core.errors import (
    ProviderNotConfiguredError,
    ProviderProtocolError,
    ProviderUnavailableError,
)
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.ollama import Ollama
from tests.support.fake_upstream import Upstream, lines, reply
from tests.support.provider_requests import question, setup, text

SAYS_HI = lines({"message": {"content": "Hi"}, "done": True, "done_reason": "stop"})
TAGS = {
    "models": [
        {"name": "nomic-embed-text:latest"},
        {"name": "all-minilm:22m"},
        {"name": "qwen3:4b"},
        {"name": "llama3.2:1b"},
        {"size": 1},
    ]
}


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/api"])
async def test_a_question_goes_to_the_native_api(ending: str) -> None:
    async with Upstream(SAYS_HI) as upstream, HttpClient() as http:
        provider = Ollama.from_setup(setup(http, ollama_base_url=upstream.url + ending))
        assert await text(provider, question(num_ctx=4096)) == "Hi"
    request = upstream.requests[0]
    assert (request.method, request.path) == ("POST", "/api/chat")
    assert request.headers["content-type"] == "application/json"
    assert request.json["model"] == "some-model"
    assert request.json["options"] == {"num_ctx": 4096}


async def test_the_installed_models_are_those_that_can_chat() -> None:
    async with Upstream(reply(200, TAGS)) as upstream, HttpClient() as http:
        assert await Ollama(http, base_url=upstream.url).list_installed_models() == (
            "qwen3:4b",
            "llama3.2:1b",
        )
    assert (upstream.requests[0].method, upstream.requests[0].path) == ("GET", "/api/tags")


@pytest.mark.parametrize("answer", [{}, [], {"models": None}, {"models": {"a": 1}}])
async def test_a_list_that_is_none_is_an_error(answer: object) -> None:
    async with Upstream(reply(200, answer)) as upstream, HttpClient() as http:
        with pytest.raises(ProviderProtocolError, match="not a list of models"):
            await Ollama(http, base_url=upstream.url).list_installed_models()


async def test_the_default_model_is_the_first_installed_and_looked_up_once() -> None:
    async with Upstream(reply(200, TAGS)) as upstream, HttpClient() as http:
        provider = Ollama(http, base_url=upstream.url)
        assert [await provider.default_model() for _ in range(2)] == ["qwen3:4b", "qwen3:4b"]
        assert len(upstream.requests) == 1


async def test_the_default_model_of_the_settings_needs_no_look_up() -> None:
    provider = Ollama.from_setup(setup(ollama_default_model="mine", ollama_model_list="a, b"))
    assert await provider.default_model() == "mine"
    assert (provider.model_list, provider.missing) == (("a", "b"), ())


async def test_without_any_model_it_is_said_how_to_get_one() -> None:
    async with Upstream(reply(200, {"models": []})) as upstream, HttpClient() as http:
        with pytest.raises(ProviderNotConfiguredError, match="OLLAMA_DEFAULT_MODEL"):
            await Ollama(http, base_url=upstream.url).default_model()


async def test_a_server_that_is_not_there_is_told() -> None:
    async with Upstream() as upstream:
        url = upstream.url
    async with HttpClient() as http:
        with pytest.raises(
            ProviderUnavailableError, match=r"^ollama cannot be reached: Connection refused\.$"
        ):
            await Ollama(http, base_url=url).default_model()
