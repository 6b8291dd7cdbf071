"""OpenAI, and servers that speak its chat completions."""

from typing import Any

import msgspec
import pytest

from ai_agent_service.core.errors import ProviderNotConfiguredError, ProviderUnavailableError
from ai_agent_service.core.messages import Message, ToolCall
from ai_agent_service.providers.chat_wire import to_wire_messages
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.openai_compatible import OPENAI_URL, OpenAICompatible
from tests.support.fake_upstream import Upstream, reply, says
from tests.support.provider_requests import question, setup, text


async def test_a_question_goes_to_chat_completions_with_the_key() -> None:
    async with Upstream(says("Hi")) as upstream, HttpClient() as http:
        provider = OpenAICompatible.from_setup(
            setup(http, openai_base_url=f"{upstream.url}/v1/", openai_api_key="sk-key")
        )
        assert await text(provider) == "Hi"
    request = upstream.requests[0]
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == "Bearer sk-key"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["x-client-request-id"] == "req-1"
    assert request.json["model"] == "some-model"


async def test_a_server_without_keys_is_sent_none() -> None:
    async with Upstream(says("Hi")) as upstream, HttpClient() as http:
        assert (
            await text(OpenAICompatible.from_setup(setup(http, openai_base_url=upstream.url)))
            == "Hi"
        )
    assert "authorization" not in upstream.requests[0].headers


async def test_a_key_that_ends_with_a_newline_is_sent_without_it() -> None:
    async with Upstream(says("Hi")) as upstream, HttpClient() as http:
        provider = OpenAICompatible.from_setup(
            setup(http, openai_base_url=upstream.url, openai_api_key=" sk-key\n")
        )
        assert await text(provider) == "Hi"
    assert upstream.requests[0].headers["authorization"] == "Bearer sk-key"


async def test_a_streamed_answer_needs_no_content_type() -> None:
    answer = says("Hi")
    answer[0] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    async with Upstream(answer) as upstream, HttpClient() as http:
        assert await text(OpenAICompatible(http, base_url=upstream.url)) == "Hi"


@pytest.mark.parametrize(
    ("request_id", "sent"), [("é", None), ("x" * 513, None), ("x" * 512, "x" * 512), ("", None)]
)
async def test_an_id_that_openai_would_refuse_is_not_sent(
    request_id: str, sent: str | None
) -> None:
    asked = msgspec.structs.replace(question(), request_id=request_id)
    async with Upstream(says("Hi")) as upstream, HttpClient() as http:
        await text(OpenAICompatible(http, base_url=upstream.url), asked)
    assert upstream.requests[0].headers.get("x-client-request-id") == sent


@pytest.mark.parametrize(
    ("url", "content"),
    [
        (OPENAI_URL, None),
        ("https://x.openai.azure.com/openai/v1", None),
        ("http://127.0.0.1:1/v1", ""),
    ],
)
def test_only_openai_and_azure_are_sent_null_as_content(url: str, content: str | None) -> None:
    provider = OpenAICompatible(HttpClient(), base_url=url)
    message = Message("assistant", "", (ToolCall("a", "b", "{}"),))
    assert to_wire_messages([message], provider.wire_profile)[0]["content"] == content


async def test_nothing_is_asked_until_an_event_is_wanted() -> None:
    async with Upstream(says("Hi")) as upstream, HttpClient() as http:
        events = OpenAICompatible(http, base_url=upstream.url).stream(question())
        await events.aclose()
        assert upstream.connections == 0


def test_openai_itself_is_asked_unless_another_server_is_named() -> None:
    assert (
        OpenAICompatible.from_setup(setup(openai_api_key="k")).url("m")
        == f"{OPENAI_URL}/chat/completions"
    )


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, ("OPENAI_API_KEY",)),
        ({"openai_api_key": "k"}, ()),
        ({"openai_base_url": "http://127.0.0.1:1"}, ()),
    ],
)
def test_a_key_is_missing_where_openai_itself_is_meant(
    settings: dict[str, Any], missing: tuple[str, ...]
) -> None:
    assert OpenAICompatible.from_setup(setup(**settings)).missing == missing


async def test_the_default_model_and_the_list_are_those_of_the_settings() -> None:
    provider = OpenAICompatible.from_setup(
        setup(openai_default_model="gpt-x", openai_model_list=("a", "b"))
    )
    assert await provider.default_model() == "gpt-x"
    assert provider.model_list == ("a", "b")


async def test_without_a_default_model_the_variable_is_named() -> None:
    with pytest.raises(ProviderNotConfiguredError, match="set OPENAI_DEFAULT_MODEL"):
        await OpenAICompatible.from_setup(setup()).default_model()
    with pytest.raises(ProviderNotConfiguredError, match='give it a "model"'):
        await OpenAICompatible(HttpClient(), base_url="http://127.0.0.1:1").default_model()


class Vendor(OpenAICompatible):
    name = "vendor"


async def test_a_subclass_is_named_in_its_errors() -> None:
    async with (
        Upstream(reply(503, {"error": "busy"})) as upstream,
        HttpClient(max_retries=0) as http,
    ):
        with pytest.raises(ProviderUnavailableError, match=r"^vendor: busy$"):
            await text(Vendor(http, base_url=upstream.url))
