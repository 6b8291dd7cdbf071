"""Turns that bring only what is new: the history comes from the server, and a session takes one of
them at a time."""

import asyncio

import pytest

from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import TextDelta
from tests.support.clients import CHAT, WEATHER, read_completion, read_error
from tests.support.events import until
from tests.support.fake_provider import Script, calls, says
from tests.support.memory import HELPER, SESSION, SQLITE, Database, Serve

SERVER = {**SESSION, "X-Session-History": "server"}


async def test_the_model_sees_what_was_said_before(serve: Serve) -> None:
    async with serve(Script(says("one"), says("two"), says("three"))) as talking:
        for number in ("1", "2", "3"):
            assert (await talking.chat(number)).status_code == 200
        assert talking.asked() == [
            ("user", "1"),
            ("assistant", "one"),
            ("user", "2"),
            ("assistant", "two"),
            ("user", "3"),
        ]
        assert [content for _, content, _ in await talking.shown()] == [
            "1",
            "one",
            "2",
            "two",
            "3",
            "three",
        ]


async def test_a_chat_completion_may_ask_for_the_servers_history(serve: Serve) -> None:
    async with serve(Script(says("one"), says("two"), says("three"))) as talking:
        read_completion(await talking.complete("1", headers=SERVER))
        read_completion(await talking.complete("2", headers=SERVER))
        metadata = {"session_id": "s", "session_history": "server"}
        read_completion(await talking.complete("3", headers={}, metadata=metadata))
        assert [text for _, text in talking.asked()] == ["1", "one", "2", "two", "3"]


async def test_both_kinds_of_history_go_on_from_each_other(serve: Serve) -> None:
    async with serve(Script(says("one"), says("two"), says("three"))) as talking:
        read_completion(await talking.complete("1"))
        read_completion(await talking.complete("2", headers=SERVER))
        read_completion(await talking.complete("1", "one", "2", "two", "3"))
        assert [content for _, content, _ in await talking.shown(branches="true")] == [
            "1",
            "one",
            "2",
            "two",
            "3",
            "three",
        ]


async def test_the_history_has_the_tools_that_were_used(serve: Serve) -> None:
    async with serve(
        Script(calls(("calculate", {"expression": "6*7"})), says("It is 42."), says("Welcome."))
    ) as talking:
        assert (await talking.chat("6*7?")).status_code == 200
        assert (await talking.chat("Thanks")).status_code == 200
        assert talking.asked() == [
            ("user", "6*7?"),
            ("assistant", ""),
            ("tool", "42"),
            ("assistant", "It is 42."),
            ("user", "Thanks"),
        ]


async def test_only_the_newest_messages_are_loaded(serve: Serve) -> None:
    agent = {
        **HELPER,
        "resource_config": {"memory": {"history_messages": 4, "compression": {"enabled": False}}},
    }
    async with serve(Script(says("a"), says("b"), says("c"), says("d")), agents=[agent]) as talking:
        for number in ("1", "2", "3", "4"):
            assert (await talking.chat(number)).status_code == 200
        assert [text for _, text in talking.asked()] == ["2", "b", "3", "c", "4"]


async def test_a_branch_is_gone_on_from_where_it_is_the_newest(serve: Serve) -> None:
    async with serve(Script(says("one"), says("other"), says("last"))) as talking:
        read_completion(await talking.complete("1"))
        read_completion(await talking.complete("1, edited"))
        assert (await talking.chat("2")).status_code == 200
        assert [text for _, text in talking.asked()] == ["1, edited", "other", "2"]


async def test_several_new_messages_are_taken_in_their_order(serve: Serve) -> None:
    async with serve(Script(says("one"), says("three"))) as talking:
        read_completion(await talking.complete("1", headers=SERVER))
        read_completion(await talking.complete("2", "two, by the client", "3", headers=SERVER))
        assert [content for _, content, _ in await talking.shown()] == [
            "1",
            "one",
            "2",
            "two, by the client",
            "3",
            "three",
        ]


async def test_what_a_failed_turn_said_is_gone_on_from(serve: Serve) -> None:
    async with serve(
        Script([TextDelta("It is"), ProviderUnavailableError("It is down.")], says("42."))
    ) as talking:
        read_error(await talking.chat("6*7?"), 502)
        assert (await talking.chat("Go on")).status_code == 200
        assert [text for _, text in talking.asked()] == ["6*7?", "It is", "Go on"]


async def test_another_users_session_of_the_same_name_is_another_one(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        for user in ("ada", "bob"):
            assert (await talking.chat(f"I am {user}", user_id=user)).status_code == 200
        assert [text for _, text in talking.asked()] == ["I am bob"]


# One at a time


async def test_a_turn_waits_for_the_one_before_it(serve: Serve) -> None:
    gate = asyncio.Event()
    async with serve(Script([gate, *says("one")], says("two"))) as talking:
        first = asyncio.create_task(talking.chat("1"))
        async with asyncio.timeout(20):
            await talking.script.waiting.wait()
        second = asyncio.create_task(talking.chat("2"))
        await talking.under_way(2)
        gate.set()
        assert (await first).json()["response"] == "one"
        assert (await second).json()["response"] == "two"
        assert [text for _, text in talking.asked()] == ["1", "one", "2"]


async def test_many_turns_at_once_make_one_line(serve: Serve) -> None:
    async with serve(Script(says("ok"))) as one, serve(Script(says("ok"))) as two:
        turns = [(one, two)[number % 2].chat(f"question {number}") for number in range(8)]
        assert {response.status_code for response in await asyncio.gather(*turns)} == {200}
        messages = (await one.conversation(branches="true"))["messages"]
    assert len(messages) == 16
    assert [message["parent"] for message in messages] == [
        None,
        *(message["id"] for message in messages[:-1]),
    ]


async def test_a_turn_that_waited_long_enough_is_refused(serve: Serve) -> None:
    gate = asyncio.Event()
    async with (
        serve(Script([gate, *says("one")])) as one,
        serve(Script(says("two")), request_timeout=0.5) as two,
    ):
        first = asyncio.create_task(one.chat("1"))
        async with asyncio.timeout(20):
            await one.script.waiting.wait()
        refused = await two.chat("2")
        assert read_error(refused, 409)["code"] == "session_busy"
        assert int(refused.headers["retry-after"]) >= 1
        gate.set()
        assert (await first).status_code == 200
        assert two.script.requests == []
        assert [content for _, content, _ in await one.shown(branches="true")] == ["1", "one"]


async def test_a_turn_in_another_session_does_not_wait(serve: Serve) -> None:
    gate = asyncio.Event()
    async with serve(Script([gate, *says("one")], says("two"))) as talking:
        first = asyncio.create_task(talking.chat("1"))
        async with asyncio.timeout(20):
            await talking.script.waiting.wait()
            assert (await talking.chat("2", session_id="another")).json()["response"] == "two"
        gate.set()
        assert (await first).status_code == 200


@pytest.mark.parametrize(
    "answer",
    [
        [ProviderUnavailableError("It is down.")],
        [TextDelta("It"), ProviderUnavailableError("It is down.")],
    ],
)
async def test_a_turn_that_failed_leaves_the_session_free(
    serve: Serve, answer: list[ProviderUnavailableError]
) -> None:
    async with serve(Script(answer)) as one, serve(Script(says("two")), request_timeout=10) as two:
        read_error(await one.chat("1"), 502)
        assert (await two.chat("2")).json()["response"] == "two"


async def test_a_turn_that_was_left_leaves_the_session_free(serve: Serve) -> None:
    async with (
        serve(Script([asyncio.Event()])) as one,
        serve(Script(says("two")), request_timeout=10) as two,
    ):
        first = asyncio.create_task(one.chat("1", stream=True))
        async with asyncio.timeout(20):
            await one.script.waiting.wait()
        first.cancel()
        await asyncio.wait((first,), timeout=20)
        assert (await two.chat("2")).json()["response"] == "two"


async def test_a_turn_that_waits_for_the_clients_tools_leaves_the_session_free(
    serve: Serve,
) -> None:
    async with (
        serve(Script(calls(("weather", {"city": "Rome"})))) as one,
        serve(Script(says("two")), request_timeout=10) as two,
    ):
        first = read_completion(await one.complete("1", headers=SERVER, tools=[WEATHER]))
        assert first["choices"][0]["finish_reason"] == "tool_calls"
        assert (await two.chat("2")).json()["response"] == "two"


async def test_a_request_without_a_question_leaves_the_session_free(serve: Serve) -> None:
    async with (
        serve(Script(says("Hi"))) as one,
        serve(Script(says("two")), request_timeout=10) as two,
    ):
        body = {"model": "helper", "messages": [{"role": "assistant", "content": "Welcome!"}]}
        read_error(await one.client.post(CHAT, json=body, headers=SERVER), 400)
        for talking in (one, two):
            assert (await talking.chat("2")).status_code == 200


async def hold_for_a_dead_process(stored: Database) -> None:
    """Makes it as if another process had taken the session for a turn, and died."""
    await stored.rows("UPDATE sessions SET lease_process = 'gone'")


async def test_what_a_dead_process_holds_is_free_at_once(serve: Serve, stored: Database) -> None:
    async with serve(Script(says("Hi")), request_timeout=2) as talking:
        assert (await talking.chat("1")).status_code == 200
        await hold_for_a_dead_process(stored)
        assert (await talking.chat("2")).status_code == 200


async def test_a_session_that_a_dead_process_holds_with_a_run_is_given_back(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script(says("Hi")), request_timeout=10) as talking:
        assert (await talking.chat("1")).status_code == 200
        await hold_for_a_dead_process(stored)
        await stored.rows("UPDATE runs SET status = 'running', process_id = 'gone'")
        await talking.memories.housekeeping.send_heartbeat()
        assert talking.memories.housekeeping.ended_runs == 1
        assert (await talking.chat("2")).status_code == 200
    assert await stored.runs() == [("incomplete", "process_gone"), ("done", None)]


async def test_a_session_that_a_dead_process_holds_before_its_run_began_is_given_back(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script(says("Hi")), request_timeout=2) as talking:
        assert (await talking.chat("1")).status_code == 200
        await hold_for_a_dead_process(stored)
        await talking.memories.housekeeping.send_heartbeat()
        assert (await talking.chat("2")).status_code == 200


async def test_a_turn_that_could_not_begin_leaves_the_session_free(
    serve: Serve, stored: Database
) -> None:
    async with (
        serve(Script(says("Hi"))) as one,
        serve(Script(says("two")), request_timeout=5) as two,
    ):
        assert (await one.chat("1")).status_code == 200
        # What the database refuses stands for whatever may happen between taking the session and
        # storing the question.
        await stored.rows("ALTER TABLE runs RENAME TO runs_away")
        assert (await one.chat("2")).status_code == 503
        await stored.rows("ALTER TABLE runs_away RENAME TO runs")

        async def ready() -> bool:
            return (await one.client.get("/health/ready")).status_code == 200

        await until(ready)
        assert (await two.chat("3")).status_code == 200


# Erasing


async def test_a_session_that_is_erased_under_way_stays_erased(
    serve: Serve, stored: Database
) -> None:
    gate = asyncio.Event()
    async with serve(Script([gate, *says("one")])) as talking:
        for turn in (talking.chat("1"), talking.complete("1")):
            gate.clear()
            talking.script.waiting.clear()
            asking = asyncio.create_task(turn)
            async with asyncio.timeout(20):
                await talking.script.waiting.wait()
            assert (
                await talking.client.delete("/agents/helper/conversations/s")
            ).status_code == 200
            gate.set()
            assert (await asking).status_code == 200
            read_error(await talking.client.get("/agents/helper/conversations/s"), 404)
    assert await stored.nodes() == []
    assert await stored.runs() == []


async def test_what_was_erased_stays_erased_where_the_session_was_begun_anew(
    serve: Serve, stored: Database
) -> None:
    gate = asyncio.Event()
    async with serve(Script([gate, *says("secret")], says("new"))) as talking:
        asking = asyncio.create_task(talking.complete("old"))
        async with asyncio.timeout(20):
            await talking.script.waiting.wait()
        assert (await talking.client.delete("/memory")).status_code == 200
        read_completion(await talking.complete("new question"))
        gate.set()
        read_completion(await asking)
        assert [content for _, content, _ in await talking.shown()] == ["new question", "new"]
    assert [body for _, body, _, _ in await stored.nodes()] == ["new question", "new"]


# The same turn, sent more than once


@SQLITE
async def test_the_first_attempt_that_comes_after_its_retry_gets_the_retrys_answer(
    serve: Serve,
) -> None:
    gate = asyncio.Event()
    async with serve(Script([gate, *says("one")], says("two"))) as talking:
        retry = asyncio.create_task(talking.chat("next", headers={"x-stainless-retry-count": "1"}))
        async with asyncio.timeout(20):
            await talking.script.waiting.wait()
        first = asyncio.create_task(talking.chat("next"))
        await talking.under_way(2)
        gate.set()
        answers = [(await each).json()["response"] for each in (retry, first)]
        assert answers == ["one", "one"]
        # What is asked after that is another turn, though it says the same.
        assert (await talking.chat("next")).json()["response"] == "two"
        assert [content for _, content, _ in await talking.shown()] == [
            "next",
            "one",
            "next",
            "two",
        ]


@SQLITE
async def test_two_equal_questions_without_a_retry_are_two_turns(serve: Serve) -> None:
    gate = asyncio.Event()
    async with serve(Script([gate, *says("one")], says("two"))) as talking:
        asking = [asyncio.create_task(talking.chat("next")) for _ in range(2)]
        await talking.under_way(2)
        gate.set()
        assert sorted([(await each).json()["response"] for each in asking]) == ["one", "two"]


@SQLITE
async def test_a_question_without_an_answer_that_is_asked_again_is_the_same_turn(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script([ProviderUnavailableError("x")], says("one"))) as talking:
        assert (await talking.chat("next")).status_code == 502
        assert (await talking.chat("next")).json()["response"] == "one"
        assert [content for _, content, _ in await talking.shown()] == ["next", "one"]
    assert len(await stored.nodes()) == 2


async def test_a_turn_whose_session_was_taken_from_it_is_not_acknowledged(
    serve: Serve, stored: Database
) -> None:
    gate = asyncio.Event()
    async with (
        serve(Script([gate, *says("one")])) as frozen,
        serve(Script(says("two"))) as other,
    ):
        asking = asyncio.create_task(frozen.chat("1"))
        async with asyncio.timeout(20):
            await frozen.script.waiting.wait()
        await stored.rows("UPDATE sessions SET lease_process = 'other'")
        await stored.rows(
            "INSERT INTO processes SELECT 'other', host, started_at, seen_at FROM processes LIMIT 1"
        )
        gate.set()
        assert (await asking).status_code == 409
        await stored.rows("DELETE FROM processes WHERE process_id = 'other'")
        assert (await other.chat("2")).status_code == 200
