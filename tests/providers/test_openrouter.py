"""OpenRouter's own fields."""

import pytest

from ai_agent_service.core.errors import ProviderRefusedError
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from ai_agent_service.providers.openrouter import OpenRouter
from tests.support.fake_upstream import DONE, END, Upstream, chunk, delta, event, head, reply, says
from tests.support.provider_requests import finish, question, setup, text


async def test_the_cost_is_read_between_signs_of_life() -> None:
    usage = {**delta(), "usage": {"prompt_tokens": 4, "completion_tokens": 2, "cost": 0.00014}}
    waiting = chunk(b": OPENROUTER PROCESSING\n\n")
    answer = [head(), waiting, waiting, event(delta("stop", content="Hi")), event(usage), DONE, END]
    async with Upstream(answer) as upstream, HttpClient() as http:
        url = f"{upstream.url}/api/v1"
        provider = OpenRouter.from_setup(
            setup(http, openrouter_base_url=url, openrouter_api_key="sk-or-1", service_name="Desk")
        )
        assert (await finish(provider.stream(question()))).usage == Usage(4, 2, cost=0.00014)
    request = upstream.requests[0]
    assert request.path == "/api/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer sk-or-1"
    assert request.headers["x-title"] == "Desk"
    assert "usage" not in request.json
    assert request.json["stream_options"] == {"include_usage": True}


async def test_a_key_is_needed_and_a_model_is_not() -> None:
    assert OpenRouter.from_setup(setup()).missing == ("OPENROUTER_API_KEY",)
    provider = OpenRouter.from_setup(
        setup(openrouter_api_key="k", openrouter_model_list="a/b, c/d")
    )
    assert provider.missing == ()
    assert provider.model_list == ("a/b", "c/d")
    assert provider.url("m") == "https://openrouter.ai/api/v1/chat/completions"
    assert await provider.default_model() == "openrouter/auto"


async def test_whether_it_is_there_and_takes_the_key_is_asked_by_what_it_knows_of_the_key() -> None:
    refuses = reply(401, {"error": {"message": "No cookie auth credentials found", "code": 401}})
    async with Upstream(reply(200, {"data": {}}), refuses) as upstream, HttpClient() as http:
        provider = OpenRouter.from_setup(
            setup(http, openrouter_base_url=f"{upstream.url}/api/v1", openrouter_api_key="sk-or-1")
        )
        await provider.ping(timeout=5)
        with pytest.raises(ProviderRefusedError):
            await provider.ping(timeout=5)
    request = upstream.requests[0]
    assert (request.method, request.path, request.headers["authorization"]) == (
        "GET",
        "/api/v1/key",
        "Bearer sk-or-1",
    )


@pytest.mark.parametrize(
    ("provider", "sent"),
    [
        (OpenRouter, {"reasoning": {"effort": "low", "summary": "auto"}}),
        (OpenAICompatible, {"reasoning_effort": "low"}),
    ],
)
async def test_reasoning_is_an_object_for_openrouter_and_an_effort_for_others(
    provider: type[OpenAICompatible], sent: dict[str, object]
) -> None:
    async with Upstream(says("Hi")) as upstream, HttpClient() as http:
        asked = question(reasoning={"effort": "low", "summary": "auto"})
        await text(provider(http, base_url=upstream.url), asked)
    body = upstream.requests[0].json
    assert {name: body[name] for name in body if name.startswith("reasoning")} == sent
