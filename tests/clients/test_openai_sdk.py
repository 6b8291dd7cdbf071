"""OpenAI's own Python client, against the application in this process and against a real server."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    AsyncOpenAI,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types.chat import (
    ChatCompletionMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionToolUnionParam,
)
from pydantic import BaseModel

from ai_agent_service.core.errors import ProviderRateLimitError, ProviderUnavailableError
from ai_agent_service.core.events import RefusalDelta, TextDelta
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.server.application import create_app
from tests.support.fake_provider import Action, Script, calls, says
from tests.support.openai_schema import Recorded
from tests.support.service import configuration, running, serving

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
WEATHER: ChatCompletionToolUnionParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Person(BaseModel):
    """What the model is asked to fill in."""

    name: str
    age: int


@asynccontextmanager
async def in_process(folder: Path, script: Script) -> AsyncGenerator[AsyncOpenAI, None]:
    """A client of the application in this process; what it was answered is checked at the end."""
    app = create_app(configuration(folder, script))
    recorded = Recorded(app)
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=recorded))
    client = AsyncOpenAI(
        base_url="http://service/v1", api_key="any", max_retries=0, http_client=http
    )
    async with asyncio.timeout(30), app.router.lifespan_context(app), client:
        yield client
    recorded.check()


@asynccontextmanager
async def live(
    folder: Path, script: Script, *, max_retries: int = 0, **settings: Any
) -> AsyncGenerator[AsyncOpenAI, None]:
    """A client of a real server; what it was answered is checked at the end."""
    recorded = Recorded(create_app(configuration(folder, script, **settings)))
    async with (
        asyncio.timeout(30),
        serving(recorded) as address,
        AsyncOpenAI(base_url=f"{address}/v1", api_key="any", max_retries=max_retries) as client,
    ):
        yield client
    recorded.check()


# In this process


async def test_agents_are_listed_and_shown_as_models(tmp_path: Path) -> None:
    async with in_process(tmp_path, Script([])) as client:
        listed = [model.id async for model in client.models.list()]
        shown = await client.models.retrieve("helper")
    assert listed == [shown.id] == ["helper"]
    assert shown.owned_by == "ai-agent-service"


async def test_a_completion_is_read(tmp_path: Path) -> None:
    async with in_process(tmp_path, Script(says("Good ", "day."))) as client:
        completion = await client.chat.completions.create(model="helper", messages=HELLO)
    assert completion.choices[0].message.content == "Good day."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 12
    assert completion._request_id


async def test_a_model_that_is_not_there_raises_not_found(tmp_path: Path) -> None:
    async with in_process(tmp_path, Script([])) as client:
        with pytest.raises(NotFoundError) as caught:
            await client.chat.completions.create(model="nobody", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.request_id


async def test_a_bad_request_raises_and_names_the_field(tmp_path: Path) -> None:
    async with in_process(tmp_path, Script([])) as client:
        with pytest.raises(BadRequestError) as caught:
            await client.chat.completions.create(model="helper", messages=HELLO, n=2)
    assert caught.value.param == "n"
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_rate_limit_of_the_provider_raises_with_the_time_to_wait(
    tmp_path: Path, stream: bool
) -> None:
    async with in_process(
        tmp_path, Script([ProviderRateLimitError("Slow down.", retry_after=7)])
    ) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(model="helper", messages=HELLO, stream=stream)
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.code == "provider_rate_limited"


async def test_a_provider_that_is_down_raises_a_server_error(tmp_path: Path) -> None:
    async with in_process(tmp_path, Script([ProviderUnavailableError("It is down.")])) as client:
        with pytest.raises(InternalServerError) as caught:
            await client.chat.completions.create(model="helper", messages=HELLO)
    assert caught.value.status_code == 502
    assert "It is down." in caught.value.message


async def test_structured_output_is_parsed(tmp_path: Path) -> None:
    script = Script(says('{"name": "Ada', '", "age": 36}'))
    async with in_process(tmp_path, script) as client:
        completion = await client.chat.completions.parse(
            model="helper", messages=HELLO, response_format=Person
        )
    assert completion.choices[0].message.parsed == Person(name="Ada", age=36)
    asked = script.requests[0].settings["response_format"]
    assert (asked["type"], asked["json_schema"]["name"]) == ("json_schema", "Person")


# Against a real server


async def test_a_stream_is_read_piece_by_piece_while_it_goes_on(tmp_path: Path) -> None:
    gate = asyncio.Event()
    script = Script([TextDelta("Good "), gate, *says("day.")])
    async with live(tmp_path, script) as client:
        stream = await client.chat.completions.create(
            model="helper", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        pieces = []
        usage = None
        async for chunk in stream:
            gate.set()
            pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            usage = chunk.usage or usage
    assert pieces == ["Good ", "day."]
    assert usage is not None
    assert usage.total_tokens == 11


async def test_a_round_trip_with_a_tool_of_the_clients_beside_one_of_ours(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), ("weather", {"city": "Oslo"})),
        says("42, and sunny."),
    )
    async with live(tmp_path, script) as client:
        first = await client.chat.completions.create(
            model="helper", messages=HELLO, tools=[WEATHER]
        )
        assert first.choices[0].finish_reason == "tool_calls"
        message = first.choices[0].message
        assert message.tool_calls is not None
        (call,) = message.tool_calls
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Oslo"}')
        follow_up: list[ChatCompletionMessageParam] = [
            *HELLO,
            # what their documentation tells to send back
            message.to_dict(),  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        second = await client.chat.completions.create(
            model="helper", messages=follow_up, tools=[WEATHER]
        )
    assert second.choices[0].message.content == "42, and sunny."
    assert [(message.role, message.text) for message in script.requests[1].messages[-2:]] == [
        ("tool", "42"),
        ("tool", "sunny"),
    ]


async def test_the_stream_helper_puts_text_and_calls_together(tmp_path: Path) -> None:
    script = Script(
        calls(("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"}), text="Let me look.")
    )
    options: ChatCompletionStreamOptionsParam = {"include_usage": True}
    async with (
        live(tmp_path, script) as client,
        client.chat.completions.stream(
            model="helper", messages=HELLO, tools=[WEATHER], stream_options=options
        ) as stream,
    ):
        kinds = [event.type async for event in stream]
        completion = await stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert "content.delta" in kinds
    message = completion.choices[0].message
    assert message.content == "Let me look."
    assert [call.function.parsed_arguments for call in message.tool_calls or ()] == [
        {"city": "Oslo"},
        {"city": "Rome"},
    ]
    assert completion.usage is not None
    assert completion.usage.total_tokens == 25


async def test_the_stream_helper_parses_structured_output(tmp_path: Path) -> None:
    async with (
        live(tmp_path, Script(says('{"name": "Ada', '", "age": 36}'))) as client,
        client.chat.completions.stream(
            model="helper", messages=HELLO, response_format=Person
        ) as stream,
    ):
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.parsed == Person(name="Ada", age=36)


async def test_the_stream_helper_reads_a_refusal(tmp_path: Path) -> None:
    answer: list[Action] = [RefusalDelta("I will "), RefusalDelta("not."), ModelFinished("stop")]
    async with (
        live(tmp_path, Script(answer)) as client,
        client.chat.completions.stream(model="helper", messages=HELLO) as stream,
    ):
        message = (await stream.get_final_completion()).choices[0].message
    assert (message.content, message.refusal) == (None, "I will not.")


async def test_an_error_within_the_stream_raises_after_what_was_said(tmp_path: Path) -> None:
    async with live(
        tmp_path, Script([TextDelta("Half"), ProviderUnavailableError("It is down.")])
    ) as client:
        chunks = aiter(
            await client.chat.completions.create(model="helper", messages=HELLO, stream=True)
        )
        first = [await anext(chunks), await anext(chunks)]
        with pytest.raises(APIError, match=r"It is down\.") as caught:
            await anext(chunks)
    assert [chunk.choices[0].delta.content for chunk in first] == ["", "Half"]
    assert not isinstance(caught.value, APIStatusError | APIConnectionError)
    assert caught.value.code == "provider_unavailable"


async def test_a_request_that_is_shed_is_retried_by_the_client_and_then_answered(
    tmp_path: Path,
) -> None:
    gate = asyncio.Event()
    script = Script([TextDelta("Slow"), gate, *says("ly")], says("Hi"))
    async with live(tmp_path, script, max_retries=2, max_concurrent_requests=1) as client:
        first = asyncio.create_task(client.chat.completions.create(model="helper", messages=HELLO))
        await script.waiting.wait()
        with pytest.raises(RateLimitError, match="Too many requests"):
            await client.with_options(max_retries=0).chat.completions.create(
                model="helper", messages=HELLO
            )
        second = asyncio.create_task(client.chat.completions.create(model="helper", messages=HELLO))
        gate.set()
        answers = [(await task).choices[0].message.content for task in (first, second)]
    assert answers == ["Slowly", "Hi"]


async def test_a_call_that_the_caller_cancels_stops_the_provider(tmp_path: Path) -> None:
    script = Script([asyncio.Event()], says("Hi"))
    async with live(tmp_path, script, max_retries=5, max_concurrent_requests=1) as client:
        given_up = asyncio.create_task(
            client.chat.completions.create(model="helper", messages=HELLO)
        )
        await script.waiting.wait()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        completion = await client.chat.completions.create(model="helper", messages=HELLO)
    assert completion.choices[0].message.content == "Hi"
    assert script.closed == 2


def test_the_client_that_blocks_reads_a_stream_too(tmp_path: Path) -> None:
    app = create_app(configuration(tmp_path, Script(says("Good ", "day."))))
    with (
        running(app) as address,
        OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="helper", messages=HELLO, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        whole = (
            client.chat.completions.create(model="helper", messages=HELLO)
            .choices[0]
            .message.content
        )
    assert text == whole == "Good day."
