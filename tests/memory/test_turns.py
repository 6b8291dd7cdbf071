"""A turn in the tree of its session: what is stored of it, when, and as what."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import RefusalDelta, TextDelta
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from tests.support.clients import (
    CHAT,
    IMAGE_MESSAGE,
    WEATHER,
    join_deltas,
    read_chunks,
    read_completion,
    read_error,
    read_stream,
)
from tests.support.events import until
from tests.support.fake_provider import Script, calls, says
from tests.support.memory import SESSION, Database, Serve, in_turn
from tests.support.service import serving

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


class Looking(Script):
    """A script that looks into the database when it is asked."""

    def __init__(self, stored: Database) -> None:
        super().__init__(says("Hi"))
        self._stored = stored
        self.seen: list[tuple[list[Any], list[Any]]] = []

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The answer."""
        self.seen.append((await self._stored.nodes(), await self._stored.runs()))
        async for event in super().stream(request):
            yield event


class LastSent:
    """`app`, with a look into the database before each end of an answer is passed on."""

    def __init__(self, app: ASGIApp, stored: Database) -> None:
        self._app = app
        self._stored = stored
        self.seen: list[list[Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.seen.append(await self._stored.nodes())
            await send(message)

        await self._app(scope, receive, watched)


# When


async def test_a_question_is_stored_before_the_provider_is_asked(
    serve: Serve, stored: Database
) -> None:
    script = Looking(stored)
    async with serve(script) as talking:
        read_completion(await talking.complete("Hello"))
    assert script.seen == [([("user", "Hello", "complete", "client")], [("running", None)])]


@STREAMED
async def test_an_answer_is_stored_before_its_end_is_sent(
    serve: Serve, stored: Database, stream: bool
) -> None:
    async with serve(Script(says("Hi", " you"))) as talking:
        watched = LastSent(talking.app, stored)
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=watched), base_url="http://service"
        ) as client:
            body = {"model": "helper", "messages": in_turn(["Hello"]), "stream": stream}
            assert (await client.post(CHAT, json=body, headers=SESSION)).status_code == 200
    assert watched.seen == [
        [("user", "Hello", "complete", "client"), ("assistant", "Hi you", "complete", "ours")]
    ]


async def test_a_run_that_came_to_its_end_is_done(serve: Serve, stored: Database) -> None:
    async with serve(Script(says("Hi"))) as talking:
        read_completion(await talking.complete("Hello"))
    assert await stored.runs() == [("done", None)]


async def test_nothing_is_stored_without_a_session(serve: Serve, stored: Database) -> None:
    async with serve(Script(says("Hi"))) as talking:
        read_completion(await talking.complete("Hello", headers={}))
    assert await stored.value("SELECT count(*) FROM sessions") == 0
    assert await stored.nodes() == []


# The tree


async def test_a_conversation_grows_by_what_is_new_in_it(serve: Serve, stored: Database) -> None:
    async with serve(Script(says("one"), says("two"))) as talking:
        read_completion(await talking.complete("1"))
        read_completion(await talking.complete("1", "one", "2"))
        shown = await talking.conversation()
    assert await stored.nodes() == [
        ("user", "1", "complete", "client"),
        ("assistant", "one", "complete", "ours"),
        ("user", "2", "complete", "client"),
        ("assistant", "two", "complete", "ours"),
    ]
    ids = [message["id"] for message in shown["messages"]]
    assert [message["parent"] for message in shown["messages"]] == [None, *ids[:-1]]


async def test_the_same_request_twice_leaves_no_duplicate(serve: Serve, stored: Database) -> None:
    async with serve(Script(says("Hi"))) as talking:
        for _ in range(2):
            read_completion(await talking.complete("Hello"))
    assert await stored.nodes() == [
        ("user", "Hello", "complete", "client"),
        ("assistant", "Hi", "complete", "ours"),
    ]
    assert await stored.runs() == [("done", None)] * 2


async def test_a_regenerated_answer_stands_beside_the_first(serve: Serve) -> None:
    async with serve(Script(says("first"), says("second"))) as talking:
        for _ in range(2):
            read_completion(await talking.complete("Hello"))
        everything = (await talking.conversation(branches="true"))["messages"]
        newest = await talking.shown()
    question, *answers = everything
    assert [(answer["content"], answer["parent"]) for answer in answers] == [
        ("first", question["id"]),
        ("second", question["id"]),
    ]
    assert newest == [("user", "Hello", "complete"), ("assistant", "second", "complete")]


async def test_an_edited_question_begins_a_branch(serve: Serve) -> None:
    async with serve(Script(says("one"), says("two"), says("three"))) as talking:
        read_completion(await talking.complete("1"))
        read_completion(await talking.complete("1", "one", "2"))
        read_completion(await talking.complete("1", "one", "2, but better"))
        everything = (await talking.conversation(branches="true"))["messages"]
        newest = await talking.shown()
    assert len(everything) == 6
    assert everything[2]["parent"] == everything[3]["parent"] == everything[1]["id"]
    assert [content for _, content, _ in newest] == ["1", "one", "2, but better", "three"]


async def test_an_edited_first_question_begins_another_conversation_in_the_session(
    serve: Serve,
) -> None:
    async with serve(Script(says("one"))) as talking:
        read_completion(await talking.complete("1"))
        read_completion(await talking.complete("2"))
        everything = (await talking.conversation(branches="true"))["messages"]
    assert [
        (message["content"], message["parent"] is None)
        for message in everything
        if message["role"] == "user"
    ] == [
        ("1", True),
        ("2", True),
    ]
    assert len({message["id"] for message in everything}) == 4


async def test_a_foreign_history_is_stored_once_as_the_clients(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script(says("two"), says("three"))) as talking:
        read_completion(await talking.complete("1", "one, elsewhere", "2"))
        read_completion(await talking.complete("1", "one, elsewhere", "2", "two", "3"))
    assert await stored.nodes() == [
        ("user", "1", "complete", "client"),
        ("assistant", "one, elsewhere", "complete", "client"),
        ("user", "2", "complete", "client"),
        ("assistant", "two", "complete", "ours"),
        ("user", "3", "complete", "client"),
        ("assistant", "three", "complete", "ours"),
    ]


async def test_a_long_foreign_history_is_stored_in_its_order(
    serve: Serve, stored: Database
) -> None:
    history = [str(number) for number in range(1200)]
    async with serve(Script(says("answer"))) as talking:
        read_completion(await talking.complete(*history, "last"))
        assert [content for _, content, _ in await talking.shown()] == [*history, "last", "answer"]
        read_completion(await talking.complete(*history, "last", "answer", "one more"))
        assert [content for _, content, _ in await talking.shown()] == [
            *history,
            "last",
            "answer",
            "one more",
            "answer",
        ]
    assert await stored.value("SELECT count(*) FROM nodes") == 1204


@pytest.mark.parametrize("edited", [0, 4, 37, 38])
async def test_what_follows_on_an_edited_message_is_stored_anew_and_nothing_else(
    serve: Serve, stored: Database, edited: int
) -> None:
    history = [str(number) for number in range(41)]
    async with serve(Script(says("An answer"))) as talking:
        read_completion(await talking.complete(*history))
        read_completion(await talking.complete(*history[:edited], "edited", *history[edited + 1 :]))
    bodies = [body for _, body, _, _ in await stored.nodes()]
    assert sorted(bodies) == sorted(
        [*history, "An answer", "edited", *history[edited + 1 :], "An answer"]
    )


async def test_what_was_said_elsewhere_since_is_stored_after_what_is_known(
    serve: Serve, stored: Database
) -> None:
    known, since = (
        [str(number) for number in range(600)],
        [f"since {number}" for number in range(40)],
    )
    async with serve(Script(says("answer"))) as talking:
        read_completion(await talking.complete(*known, "a question"))
        read_completion(await talking.complete(*known, *since, "a question"))
        assert [content for _, content, _ in await talking.shown()] == [
            *known,
            *since,
            "a question",
            "answer",
        ]
    assert await stored.value("SELECT count(*) FROM nodes") == 600 + 2 + 40 + 2


@pytest.mark.parametrize(
    "changed",
    [
        "Caf\u00e9 au lait\n\n- one\n- two",
        " Cafe\u0301 au lait - one - two\n",
        "Caf\u00e9 au lait\r\n\r\n- one\r\n- two",
    ],
    ids=["same", "decomposed and trimmed", "other line ends"],
)
async def test_an_answer_that_came_back_in_another_form_is_found(
    serve: Serve, stored: Database, changed: str
) -> None:
    async with serve(Script(says("Caf\u00e9 au lait\n\n", "- one\n- two"), says("ok"))) as talking:
        read_completion(await talking.complete("?"))
        read_completion(await talking.complete("?", changed, "Thanks"))
    assert await stored.origins() == [("user", "client"), ("assistant", "ours")] * 2


async def test_an_answer_that_the_client_changed_is_another_one(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script(says("It is 41."), says("ok"))) as talking:
        read_completion(await talking.complete("?"))
        read_completion(await talking.complete("?", "It is 42.", "Thanks"))
        assert [content for _, content, _ in await talking.shown()] == [
            "?",
            "It is 42.",
            "Thanks",
            "ok",
        ]
    assert ("assistant", "It is 41.", "complete", "ours") in await stored.nodes()
    assert ("assistant", "It is 42.", "complete", "client") in await stored.nodes()


async def test_system_messages_are_sent_on_and_not_stored(serve: Serve, stored: Database) -> None:
    async with serve(Script(says("Hi"))) as talking:
        brief = {"role": "system", "content": "Be brief."}
        read_completion(await talking.complete(brief, {"role": "user", "content": "Hello"}))
        read_completion(
            await talking.complete(
                {"role": "user", "content": "Hello"}, {"role": "developer", "content": "Be long."}
            )
        )
        assert [request.messages[0].text for request in talking.script.requests] == [
            "You help.\n\nBe brief.",
            "You help.\n\nBe long.",
        ]
    assert await stored.nodes() == [
        ("user", "Hello", "complete", "client"),
        ("assistant", "Hi", "complete", "ours"),
    ]


async def test_an_image_belongs_to_what_a_message_says(serve: Serve) -> None:
    another = {
        **IMAGE_MESSAGE,
        "content": [
            IMAGE_MESSAGE["content"][0],
            {"type": "image_url", "image_url": {"url": "https://example.com/i"}},
        ],
    }
    async with serve(Script(says("A dot."))) as talking:
        for message in (IMAGE_MESSAGE, another, IMAGE_MESSAGE):
            read_completion(await talking.complete(message))
        everything = (await talking.conversation(branches="true"))["messages"]
    questions = [message["content"] for message in everything if message["role"] == "user"]
    assert [(text["text"], image["image_url"]["url"]) for text, image in questions] == [
        ("What is this?", IMAGE_MESSAGE["content"][1]["image_url"]["url"]),
        ("What is this?", "https://example.com/i"),
    ]


async def test_two_turns_at_once_are_two_branches(serve: Serve) -> None:
    gate = asyncio.Event()
    async with serve(Script([gate, *says("Hi")])) as talking:
        one, two = (
            asyncio.create_task(talking.complete(f"question {number}")) for number in (1, 2)
        )
        await until(lambda: len(talking.script.requests) == 2)
        gate.set()
        for response in (await one, await two):
            read_completion(response)
        everything = (await talking.conversation(branches="true"))["messages"]
    answers = {
        message["parent"]: message["content"]
        for message in everything
        if message["role"] == "assistant"
    }
    assert answers == {message["id"]: "Hi" for message in everything if message["role"] == "user"}
    assert len(answers) == 2


async def test_a_refusal_is_an_answer(serve: Serve) -> None:
    async with serve(Script([RefusalDelta("I will not."), ModelFinished("stop")])) as talking:
        read_completion(await talking.complete("Do it"))
        assert await talking.shown() == [
            ("user", "Do it", "complete"),
            ("assistant", "I will not.", "complete"),
        ]


async def test_an_answer_is_shown_with_its_run_and_its_usage(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        told_run = (
            await talking.client.post(
                "/agents/helper/chat", json={"message": "Hello", "session_id": "s"}
            )
        ).json()
        answer = (await talking.conversation())["messages"][1]
    assert (answer["run_id"], answer["usage"]) == (told_run["run_id"], told_run["usage"])


async def test_nul_in_an_answer_does_not_keep_it_from_being_stored(serve: Serve) -> None:
    async with serve(
        Script(calls(("calculate", {"expression": "1"}), text="a\x00"), says("b\x00c"))
    ) as talking:
        read_completion(await talking.complete("?"))
        assert await talking.shown() == [
            ("user", "?", "complete"),
            ("assistant", "a\ufffdb\ufffdc", "complete"),
        ]


# Tools


async def test_tool_steps_are_restored_where_the_client_leaves_them_out(serve: Serve) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), text="Let me see. "),
        says("It is 42."),
        says("Welcome."),
    )
    async with serve(script) as talking:
        read_completion(await talking.complete("6*7?"))
        read_completion(await talking.complete("6*7?", "Let me see. It is 42.", "Thanks"))
        assert talking.asked() == [
            ("user", "6*7?"),
            ("assistant", "Let me see. "),
            ("tool", "42"),
            ("assistant", "It is 42."),
            ("user", "Thanks"),
        ]
        (call,) = script.requests[-1].messages[2].tool_calls
        assert (call.name, call.arguments, script.requests[-1].messages[3].tool_call_id) == (
            "calculate",
            '{"expression":"6*7"}',
            call.id,
        )
        assert [content for _, content, _ in await talking.shown()] == [
            "6*7?",
            "Let me see. It is 42.",
            "Thanks",
            "Welcome.",
        ]


async def test_tool_steps_that_the_client_brings_are_left_as_they_are(
    serve: Serve, stored: Database
) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), text="Let me see. "),
        says("It is 42."),
        says("Welcome."),
    )
    call = {
        "id": "call_theirs_1234",
        "type": "function",
        "function": {"name": "calculate", "arguments": "{}"},
    }
    replayed = (
        {"role": "user", "content": "6*7?"},
        {"role": "assistant", "content": "Let me see. ", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_theirs_1234", "content": "about 42"},
        {"role": "assistant", "content": "It is 42."},
        {"role": "user", "content": "Thanks"},
    )
    async with serve(script) as talking:
        read_completion(await talking.complete("6*7?"))
        read_completion(await talking.complete(*replayed))
        assert ("tool", "about 42") in talking.asked()
        assert len(talking.asked()) == 5
    assert await stored.origins() == [("user", "client"), ("assistant", "ours")] * 2


async def test_the_tools_of_a_foreign_answer_are_kept_with_it(serve: Serve) -> None:
    call = {
        "id": "call_theirs_1234",
        "type": "function",
        "function": {"name": "calculate", "arguments": '{"expression": "6*7"}'},
    }
    brought = (
        {"role": "user", "content": "6*7?"},
        {"role": "assistant", "content": "Well: ", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_theirs_1234", "content": "42"},
        {"role": "assistant", "content": "42."},
        {"role": "user", "content": "Thanks"},
    )
    async with serve(Script(says("Welcome."))) as talking:
        read_completion(await talking.complete(*brought))
        answer = (await talking.conversation())["messages"][1]
    assert answer["content"] == "Well: 42."
    assert [(run["id"], run["name"], run["result"]) for run in answer["tool_calls"]] == [
        ("call_theirs_1234", "calculate", "42")
    ]


async def test_the_beginning_of_an_answer_that_the_client_brings_is_kept_with_its_steps(
    serve: Serve,
) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), text="see. "),
        says("It is 42"),
        says("Welcome."),
    )
    async with serve(script) as talking:
        read_completion(await talking.complete("6*7?", "Let me "))
        read_completion(await talking.complete("6*7?", "Let me see. It is 42", "Thanks"))
        assert talking.asked()[1:-1] == [
            ("assistant", "Let me see. "),
            ("tool", "42"),
            ("assistant", "It is 42"),
        ]
        assert [content for _, content, _ in await talking.shown()] == [
            "6*7?",
            "Let me see. It is 42",
            "Thanks",
            "Welcome.",
        ]


async def test_a_turn_that_goes_on_with_the_clients_tool_makes_one_answer(serve: Serve) -> None:
    script = Script(
        calls(("weather", {"city": "Rome"}), text="I look. "),
        says("It is sunny."),
        says("Welcome."),
    )
    async with serve(script) as talking:
        first = read_completion(await talking.complete("Rome?", tools=[WEATHER]))["choices"][0]
        assert first["finish_reason"] == "tool_calls"
        call_id = first["message"]["tool_calls"][0]["id"]
        assert [status for _, _, status in await talking.shown()] == ["complete", "incomplete"]
        result = {"role": "tool", "tool_call_id": call_id, "content": "sunny"}
        read_completion(await talking.complete("Rome?", first["message"], result, tools=[WEATHER]))
        assert await talking.shown() == [
            ("user", "Rome?", "complete"),
            ("assistant", "I look. It is sunny.", "complete"),
        ]
        answer = (await talking.conversation())["messages"][1]
        assert [(run["name"], run["result"]) for run in answer["tool_calls"]] == [
            ("weather", "sunny")
        ]
        read_completion(
            await talking.complete("Rome?", "I look. It is sunny.", "Thanks", tools=[WEATHER])
        )
        assert talking.asked() == [
            ("user", "Rome?"),
            ("assistant", "I look. "),
            ("tool", "sunny"),
            ("assistant", "It is sunny."),
            ("user", "Thanks"),
        ]


# What was interrupted


@STREAMED
async def test_what_a_failed_run_said_is_stored_as_incomplete(
    serve: Serve, stored: Database, stream: bool
) -> None:
    async with serve(
        Script([TextDelta("It is"), ProviderUnavailableError("It is down.")])
    ) as talking:
        response = await talking.complete("?", stream=stream)
        if stream:
            chunks, error = read_stream(response)
            assert join_deltas(chunks) == "It is"
            assert error is not None
        else:
            read_error(response, 502)
        assert await talking.shown() == [
            ("user", "?", "complete"),
            ("assistant", "It is", "incomplete"),
        ]
    assert await stored.runs() == [("incomplete", "provider_unavailable")]


async def test_a_failure_without_a_word_leaves_the_question_and_an_incomplete_run(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script([ProviderUnavailableError("It is down.")])) as talking:
        read_error(await talking.complete("?"), 502)
        assert await talking.shown() == [("user", "?", "complete")]
    assert await stored.runs() == [("incomplete", "provider_unavailable")]


async def test_the_tools_of_a_failed_run_are_kept(serve: Serve) -> None:
    async with serve(
        Script(
            calls(("calculate", {"expression": "6*7"})), [ProviderUnavailableError("It is down.")]
        )
    ) as talking:
        read_error(await talking.complete("?"), 502)
        answer = (await talking.conversation())["messages"][1]
    assert (answer["status"], answer["tool_calls"][0]["result"]) == ("incomplete", "42")


async def test_an_answer_past_the_deadline_is_stored_as_incomplete(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script([TextDelta("It is"), asyncio.Event()]), request_timeout=0.5) as talking:
        chunks, error = read_stream(await talking.complete("?", stream=True))
        assert join_deltas(chunks) == "It is"
        assert error is not None
        assert error["code"] == "run_timeout"
        assert await talking.shown() == [
            ("user", "?", "complete"),
            ("assistant", "It is", "incomplete"),
        ]
    assert [status for status, _ in await stored.runs()] == ["incomplete"]


async def test_what_a_client_that_left_was_told_is_stored_as_incomplete(
    serve: Serve, stored: Database
) -> None:
    async with (
        serve(Script([TextDelta("It is"), asyncio.Event()])) as talking,
        serving(talking.app) as address,
    ):
        body = {"model": "helper", "messages": in_turn(["?"]), "stream": True}
        async with (
            httpx2.AsyncClient(base_url=address) as client,
            client.stream("POST", CHAT, json=body, headers=SESSION) as response,
        ):
            async for line in response.aiter_lines():
                if "It is" in line:
                    break

        async def is_over() -> bool:
            return await stored.runs() != [("running", None)]

        await until(is_over)
        assert await talking.shown() == [
            ("user", "?", "complete"),
            ("assistant", "It is", "incomplete"),
        ]
    assert await stored.runs() == [("incomplete", None)]


async def test_an_incomplete_answer_that_the_client_goes_on_from_stays_incomplete(
    serve: Serve,
) -> None:
    async with serve(
        Script([TextDelta("It is"), ProviderUnavailableError("It is down.")], says("42."))
    ) as talking:
        read_stream(await talking.complete("?", stream=True))
        read_completion(await talking.complete("?", "It is", "Go on"))
        assert [(content, status) for _, content, status in await talking.shown()] == [
            ("?", "complete"),
            ("It is", "incomplete"),
            ("Go on", "complete"),
            ("42.", "complete"),
        ]


async def test_an_equal_answer_that_is_complete_replaces_an_incomplete_one(serve: Serve) -> None:
    async with serve(
        Script([TextDelta("It is"), ProviderUnavailableError("It is down.")], says("It is"))
    ) as talking:
        read_stream(await talking.complete("?", stream=True))
        read_completion(await talking.complete("?"))
        assert await talking.shown(branches="true") == [
            ("user", "?", "complete"),
            ("assistant", "It is", "complete"),
        ]


async def test_what_a_complete_answer_says_is_kept_as_it_was_said(serve: Serve) -> None:
    tool = calls(("calculate", {"expression": "6*7"}), text="It ")
    async with serve(
        Script([TextDelta("It is"), ProviderUnavailableError("It is down.")], tool, says("\nis"))
    ) as talking:
        read_stream(await talking.complete("?", stream=True))
        read_completion(await talking.complete("?"))
        assert await talking.shown(branches="true") == [
            ("user", "?", "complete"),
            ("assistant", "It \nis", "complete"),
        ]
        again = read_completion(
            await talking.complete("?", headers={**SESSION, "x-stainless-retry-count": "1"})
        )
        assert again["choices"][0]["message"]["content"] == "It \nis"


async def test_an_equal_answer_that_is_incomplete_leaves_a_complete_one(serve: Serve) -> None:
    async with serve(
        Script(says("It is"), [TextDelta("It is"), ProviderUnavailableError("It is down.")])
    ) as talking:
        read_completion(await talking.complete("?"))
        read_stream(await talking.complete("?", stream=True))
        assert await talking.shown(branches="true") == [
            ("user", "?", "complete"),
            ("assistant", "It is", "complete"),
        ]


async def test_a_run_that_is_cut_at_the_end_of_the_service_is_incomplete(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script([TextDelta("It is"), asyncio.Event()])) as talking:
        asking = asyncio.create_task(talking.complete("?", stream=True))
        async with asyncio.timeout(20):
            await talking.script.waiting.wait()
        asking.cancel()
        await asyncio.wait((asking,), timeout=20)
    assert await stored.nodes() == [
        ("user", "?", "complete", "client"),
        ("assistant", "It is", "incomplete", "ours"),
    ]
    assert [status for status, _ in await stored.runs()] == ["incomplete"]


async def test_a_client_that_left_before_its_question_was_stored_leaves_no_run_under_way(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script(says("Hi"))) as talking:
        read_completion(await talking.complete("Hello"))
        async with stored.locked():
            leaving = asyncio.create_task(talking.complete("Hello", "Hi", "?"))
            await talking.under_way(1)
            leaving.cancel()
            await asyncio.wait((leaving,), timeout=20)
            assert leaving.done()
        await talking.settled()
        assert len(talking.script.requests) == 1
    assert "running" not in [status for status, _ in await stored.runs()]


# A conversation that has no question to store


async def test_a_conversation_without_a_question_is_answered_and_not_stored(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script(says("Hi"))) as talking:
        read_completion(await talking.complete({"role": "assistant", "content": "Welcome!"}))
    assert await stored.nodes() == []


async def test_an_answer_that_the_client_begins_is_kept_whole(serve: Serve) -> None:
    async with serve(Script(says(" upon a time."))) as talking:
        read_completion(await talking.complete("A tale", "Once"))
        assert await talking.shown() == [
            ("user", "A tale", "complete"),
            ("assistant", "Once upon a time.", "complete"),
        ]


async def test_a_stream_tells_the_whole_answer_that_is_stored(serve: Serve) -> None:
    async with serve(Script(says("a", "b", "c"))) as talking:
        assert join_deltas(read_chunks(await talking.complete("?", stream=True))) == "abc"
        assert await talking.shown() == [
            ("user", "?", "complete"),
            ("assistant", "abc", "complete"),
        ]
