"""A request that is sent again because its answer did not arrive gets that answer; it is not asked
twice."""

import asyncio
from pathlib import Path

import pytest

from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelFinished
from tests.support.clients import join_deltas, read_chunks, read_completion, read_error
from tests.support.events import until
from tests.support.fake_provider import Script, calls, says
from tests.support.memory import SESSION, SQLITE, Database, Serve

AGAIN = {**SESSION, "x-stainless-retry-count": "1"}
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@STREAMED
async def test_a_complete_answer_is_told_again(
    serve: Serve, stored: Database, stream: bool
) -> None:
    async with serve(
        Script([TextDelta("It is "), TextDelta("42."), ModelFinished("length", (), Usage(10, 2))])
    ) as talking:
        read_completion(await talking.complete("6*7?"))
        response = await talking.complete(
            "6*7?",
            headers=AGAIN,
            stream=stream,
            stream_options={"include_usage": True} if stream else None,
        )
        if stream:
            chunks = read_chunks(response)
            assert join_deltas(chunks) == "It is 42."
            assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][
                -1
            ] == "length"
            usage = chunks[-1]["usage"]
        else:
            completion = read_completion(response)
            assert completion["choices"][0]["message"]["content"] == "It is 42."
            assert completion["choices"][0]["finish_reason"] == "length"
            usage = completion["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (10, 2)
        assert len(talking.script.requests) == 1
    assert await stored.runs() == [("done", None)]


async def test_an_answer_is_told_again_with_its_tools(serve: Serve) -> None:
    async with serve(
        Script(calls(("calculate", {"expression": "6*7"}), text="Well. "), says("42."))
    ) as talking:
        body = {"messages": [{"role": "user", "content": "6*7?"}], "session_id": "s"}
        first, again = [
            (await talking.client.post("/agents/helper/chat", json=body, headers=headers)).json()
            for headers in ({}, AGAIN)
        ]
        assert len(talking.script.requests) == 2
    assert {name: first[name] for name in ("response", "tool_calls", "usage", "finish_reason")} == {
        name: again[name] for name in ("response", "tool_calls", "usage", "finish_reason")
    }
    assert again["response"] == "Well. 42."


@STREAMED
async def test_a_request_whose_run_is_under_way_joins_it(
    serve: Serve, stored: Database, stream: bool
) -> None:
    gate = asyncio.Event()
    async with serve(
        Script([TextDelta("It is "), gate, TextDelta("42."), ModelFinished("stop")])
    ) as talking:
        first = asyncio.create_task(talking.complete("6*7?", stream=stream))
        async with asyncio.timeout(20):
            await talking.script.waiting.wait()
        second = asyncio.create_task(talking.complete("6*7?", headers=AGAIN, stream=stream))
        await talking.under_way(2)
        gate.set()
        for response in (await first, await second):
            said = (
                join_deltas(read_chunks(response))
                if stream
                else read_completion(response)["choices"][0]["message"]["content"]
            )
            assert said == "It is 42."
        assert len(talking.script.requests) == 1
        assert await talking.shown(branches="true") == [
            ("user", "6*7?", "complete"),
            ("assistant", "It is 42.", "complete"),
        ]
    assert await stored.runs() == [("done", None)]


async def test_a_request_whose_run_is_under_way_in_another_process_is_told_so(
    serve: Serve, stored: Database
) -> None:
    gate = asyncio.Event()
    async with serve(Script([gate, *says("Hi")])) as one, serve(Script(says("Other"))) as two:
        first = asyncio.create_task(one.complete("Hello"))
        async with asyncio.timeout(20):
            await one.script.waiting.wait()
        refused = await two.complete("Hello", headers=AGAIN)
        assert read_error(refused, 409)["code"] == "session_busy"
        assert int(refused.headers["retry-after"]) >= 1
        gate.set()
        read_completion(await first)
        assert (
            read_completion(await two.complete("Hello", headers=AGAIN))["choices"][0]["message"][
                "content"
            ]
            == "Hi"
        )
        assert two.script.requests == []
    assert await stored.runs() == [("done", None)]


async def test_a_run_of_a_process_that_is_gone_is_run_again(serve: Serve, stored: Database) -> None:
    async with serve(Script(says("Hi"))) as talking:
        read_completion(await talking.complete("Hello"))
        await stored.rows("UPDATE runs SET status = 'running', answer = NULL, process_id = 'gone'")
        read_completion(await talking.complete("Hello", headers=AGAIN))
        assert len(talking.script.requests) == 2


@SQLITE
async def test_a_run_of_a_process_that_has_just_found_its_database_is_not_taken_for_one_of_the_dead(
    serve: Serve, stored: Database
) -> None:
    gate = asyncio.Event()
    path = Path(stored.under_test.url.removeprefix("sqlite:///"))
    path.mkdir()
    async with serve(Script([gate, *says("Hi")]), allow_unauthenticated=True) as one:
        assert one.memories.database.problem is not None
        path.rmdir()
        await until(lambda: one.memories.database.problem is None)
        asking = asyncio.create_task(one.complete("Hello"))
        async with asyncio.timeout(20):
            await one.script.waiting.wait()
        async with serve(Script(says("Other"))) as two:
            await two.memories.housekeeping.send_heartbeat()
            assert await stored.runs() == [("running", None)]
            read_error(await two.complete("Hello", headers=AGAIN), 409)
            gate.set()
            read_completion(await asking)


async def test_a_turn_that_failed_is_run_again(serve: Serve, stored: Database) -> None:
    async with serve(
        Script([TextDelta("It is"), ProviderUnavailableError("It is down.")], says("It is 42."))
    ) as talking:
        read_error(await talking.complete("6*7?"), 502)
        read_completion(await talking.complete("6*7?", headers=AGAIN))
        assert await talking.shown() == [
            ("user", "6*7?", "complete"),
            ("assistant", "It is 42.", "complete"),
        ]
    assert [status for status, _ in await stored.runs()] == ["incomplete", "done"]


async def test_a_retry_of_what_never_arrived_is_run(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        read_completion(await talking.complete("Hello", headers=AGAIN))
        assert len(talking.script.requests) == 1


async def test_a_first_attempt_is_a_regenerate(serve: Serve) -> None:
    async with serve(Script(says("Hi"), says("Hello yourself"))) as talking:
        read_completion(await talking.complete("Hello"))
        read_completion(
            await talking.complete("Hello", headers={**SESSION, "x-stainless-retry-count": "0"})
        )
        assert len(talking.script.requests) == 2


async def test_a_retry_gets_the_newest_of_regenerated_answers(serve: Serve) -> None:
    async with serve(Script(says("first"), says("second"))) as talking:
        for headers in (SESSION, SESSION):
            read_completion(await talking.complete("Hello", headers=headers))
        again = read_completion(await talking.complete("Hello", headers=AGAIN))
    assert again["choices"][0]["message"]["content"] == "second"


async def test_a_repeated_message_id_gets_its_answer_again(serve: Serve) -> None:
    async with serve(Script(says("first"), says("second"))) as talking:
        said = [
            read_completion(
                await talking.complete("Hello", headers={**SESSION, "X-AAS-Message": name})
            )["choices"][0]["message"]["content"]
            for name in ("m1", "m1", "m2", "m1", "m2")
        ]
        assert len(talking.script.requests) == 2
    assert said == ["first", "first", "second", "first", "second"]


async def test_a_message_id_under_which_something_else_was_asked_is_run(serve: Serve) -> None:
    async with serve(Script(says("first"), says("second"), says("third"))) as talking:
        said = [
            read_completion(
                await talking.complete(text, headers={**SESSION, "X-AAS-Message": name})
            )["choices"][0]["message"]["content"]
            for text, name in (("Hello", "m1"), ("Goodbye", "m2"), ("Goodbye", "m1"))
        ]
    assert said == ["first", "second", "third"]


async def test_another_users_answer_is_not_told(serve: Serve) -> None:
    async with serve(Script(says("for ada"), says("for bob"))) as talking:
        said = [
            read_completion(await talking.complete("Hello", headers=AGAIN, user=user))["choices"][
                0
            ]["message"]["content"]
            for user in ("ada", "bob", "ada")
        ]
    assert said == ["for ada", "for bob", "for ada"]


async def test_a_request_that_joined_a_run_which_is_stopped_is_told_so(serve: Serve) -> None:
    async with serve(Script([TextDelta("It is"), asyncio.Event()])) as talking:
        first = asyncio.create_task(talking.complete("6*7?", stream=True))
        async with asyncio.timeout(20):
            await talking.script.waiting.wait()
        second = asyncio.create_task(talking.complete("6*7?", headers=AGAIN))
        await talking.under_way(2)
        first.cancel()
        await asyncio.wait((first,), timeout=20)
        refused = await asyncio.wait_for(second, 20)
    assert read_error(refused, 409)["code"] == "session_busy"


async def test_a_turn_with_the_servers_history_is_not_asked_twice(serve: Serve) -> None:
    async with serve(Script(says("one"), says("two"))) as talking:
        turns: tuple[tuple[str, dict[str, str]], ...] = (("1", {}), ("2", {}), ("2", AGAIN))
        said = [
            (await talking.chat(message, headers=headers)).json()["response"]
            for message, headers in turns
        ]
        assert said == ["one", "two", "two"]
        assert len(talking.script.requests) == 2
        assert [content for _, content, _ in await talking.shown(branches="true")] == [
            "1",
            "one",
            "2",
            "two",
        ]


async def test_a_failed_turn_with_the_servers_history_is_run_again_in_its_place(
    serve: Serve,
) -> None:
    async with serve(
        Script(says("one"), [TextDelta("tw"), ProviderUnavailableError("It is down.")], says("two"))
    ) as talking:
        assert (await talking.chat("1")).status_code == 200
        read_error(await talking.chat("2"), 502)
        assert (await talking.chat("2", headers=AGAIN)).json()["response"] == "two"
        assert talking.asked() == [("user", "1"), ("assistant", "one"), ("user", "2")]
        assert [content for _, content, _ in await talking.shown()] == ["1", "one", "2", "two"]


async def test_a_repeated_message_id_with_the_servers_history_gets_its_answer_again(
    serve: Serve,
) -> None:
    async with serve(Script(says("one"), says("two"))) as talking:
        said = [
            (await talking.chat("1", headers={"X-AAS-Message": name})).json()["response"]
            for name in ("m1", "m1", "m2")
        ]
        assert said == ["one", "one", "two"]
        assert [content for _, content, _ in await talking.shown()] == ["1", "one", "1", "two"]


async def test_an_answered_turn_with_the_servers_history_leaves_the_session_free(
    serve: Serve,
) -> None:
    async with serve(Script(says("one"))) as one, serve(Script(says("two"))) as two:
        for headers in ({}, AGAIN):
            assert (await one.chat("1", headers=headers)).json()["response"] == "one"
        assert (await two.chat("2")).json()["response"] == "two"


KEYED = {**SESSION, "Idempotency-Key": "k"}


@STREAMED
async def test_another_replica_tells_the_answer_to_an_idempotency_key_again(
    serve: Serve, stored: Database, stream: bool
) -> None:
    async with serve(Script(says("Hi"))) as one, serve(Script(says("Other"))) as two:
        read_completion(await one.complete("Hello", headers=KEYED))
        response = await two.complete("Hello", headers=KEYED, stream=stream)
        assert (
            join_deltas(read_chunks(response))
            if stream
            else read_completion(response)["choices"][0]["message"]["content"]
        ) == "Hi"
        assert two.script.requests == []
    assert await stored.runs() == [("done", None)]


async def test_another_replica_refuses_an_idempotency_key_of_another_question(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script(says("Hi"))) as one, serve(Script(says("Other"))) as two:
        read_completion(await one.complete("Hello", headers=KEYED))
        for messages in (("Goodbye",), ("Hello", "Hi", "Hello")):
            error = read_error(await two.complete(*messages, headers=KEYED), 422)
            assert (error["code"], error["param"]) == ("idempotency_mismatch", "Idempotency-Key")
        assert two.script.requests == []
        read_completion(await two.complete("Hello", headers=KEYED))
        assert [content for _, content, _ in await two.shown(branches="true")] == ["Hello", "Hi"]
    assert await stored.runs() == [("done", None)]


async def test_a_failed_turn_is_run_again_under_its_idempotency_key(
    serve: Serve, stored: Database
) -> None:
    async with (
        serve(Script([TextDelta("H"), ProviderUnavailableError("It is down.")])) as one,
        serve(Script(says("Hi"))) as two,
    ):
        read_error(await one.complete("Hello", headers=KEYED), 502)
        for _ in range(2):
            assert (
                read_completion(await two.complete("Hello", headers=KEYED))["choices"][0][
                    "message"
                ]["content"]
                == "Hi"
            )
    assert [status for status, _ in await stored.runs()] == ["incomplete", "done"]


async def test_the_same_question_under_another_idempotency_key_is_asked(serve: Serve) -> None:
    async with serve(Script(says("one"), says("two"))) as talking:
        said = [
            read_completion(
                await talking.complete("Hello", headers={**SESSION, "Idempotency-Key": key})
            )["choices"][0]["message"]["content"]
            for key in ("k1", "k2", "k1", "k2")
        ]
    assert said == ["one", "two", "one", "two"]


async def test_an_idempotency_key_with_the_servers_history_is_known_to_another_replica(
    serve: Serve,
) -> None:
    async with (
        serve(Script(says("one"), says("two"), says("three"))) as one,
        serve(Script(says("other"))) as two,
    ):
        for message in ("1", "2", "1"):
            assert (
                await one.chat(
                    message, headers={"Idempotency-Key": f"k{message}{len(one.script.requests)}"}
                )
            ).status_code == 200
        for key, message, said in (("k10", "1", "one"), ("k21", "2", "two"), ("k12", "1", "three")):
            assert (await two.chat(message, headers={"Idempotency-Key": key})).json()[
                "response"
            ] == said
        assert (
            read_error(await two.chat("3", headers={"Idempotency-Key": "k10"}), 422)["code"]
            == "idempotency_mismatch"
        )
        assert two.script.requests == []
        assert (await two.chat("3", headers={"Idempotency-Key": "k3"})).json()[
            "response"
        ] == "other"
        assert [content for _, content, _ in await two.shown(branches="true")] == [
            "1",
            "one",
            "2",
            "two",
            "1",
            "three",
            "3",
            "other",
        ]


async def test_a_failed_turn_with_the_servers_history_is_run_again_under_its_idempotency_key(
    serve: Serve,
) -> None:
    async with serve(
        Script([TextDelta("o"), ProviderUnavailableError("It is down.")], says("two"), says("one"))
    ) as talking:
        read_error(await talking.chat("1", headers={"Idempotency-Key": "k1"}), 502)
        assert (await talking.chat("2", headers={"Idempotency-Key": "k2"})).json()[
            "response"
        ] == "two"
        assert (await talking.chat("1", headers={"Idempotency-Key": "k1"})).json()[
            "response"
        ] == "one"
        assert talking.asked()[-1] == ("user", "1")
