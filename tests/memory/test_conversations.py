"""What is stored is listed, shown, exported and deleted: one's own, and nobody else's."""

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import Generator
from datetime import datetime
from typing import Any

import msgspec
import pytest
from dirty_equals import IsStr

from ai_agent_service.core.errors import NotFoundError, ProviderUnavailableError
from ai_agent_service.core.events import TextDelta
from tests.support.clients import read_completion, read_error
from tests.support.events import until
from tests.support.fake_provider import Script, calls, says
from tests.support.memory import HELPER, SQLITE, Database, Serve, Talking
from tests.support.postgres import PostgresServer, binaries_18, free_port

LIST = "/agents/helper/conversations"
ROUTES = (
    ("GET", LIST),
    ("GET", f"{LIST}/s"),
    ("DELETE", f"{LIST}/s"),
    ("GET", "/memory"),
    ("DELETE", "/memory"),
)


async def listed(talking: Talking, **params: Any) -> dict[str, Any]:
    """A page of the list."""
    response = await talking.client.get(LIST, params=params)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


async def begin(talking: Talking, *sessions: str, **fields: Any) -> None:
    """A turn in each of the sessions, one after the other."""
    for session in sessions:
        read_completion(
            await talking.complete("Hello", headers={"X-Session-Id": session}, **fields)
        )


def names(page: dict[str, Any]) -> list[str]:
    """The session ids of a page."""
    return [each["session_id"] for each in page["data"]]


# The list


async def test_the_session_used_last_is_listed_first(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "a", "b", "c", "a")
        page = await listed(talking)
    assert names(page) == ["a", "c", "b"]
    assert page["next"] is None
    first = page["data"][0]
    assert first["messages"] == 2
    assert datetime.fromisoformat(first["created_at"]) < datetime.fromisoformat(first["updated_at"])


async def test_pages_follow_each_other_though_all_sessions_were_used_at_once(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, *"abcdefg")
        await stored.rows("UPDATE sessions SET updated_at = '2026-01-02 03:04:05.678901'")
        pages = [await listed(talking, limit=3)]
        while pages[-1]["next"] is not None:
            pages.append(await listed(talking, limit=3, after=pages[-1]["next"]))
    assert [len(page["data"]) for page in pages] == [3, 3, 1]
    assert sorted(name for page in pages for name in names(page)) == [*"abcdefg"]


async def test_a_page_that_holds_all_that_is_left_is_the_last(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "a", "b")
        assert (await listed(talking, limit=2))["next"] is None


def position(*parts: object) -> str:
    """A position as a list gives it, of made-up parts."""
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).decode().rstrip("=")


@pytest.mark.parametrize(
    "after",
    [
        "x",
        "\u00e9",
        position("2026-01-01T00:00:00Z"),
        position("2026-01-01T00:00:00Z", "xyz"),
        position("2026-01-01T00:00:00", "00"),
        position("9999-12-31T23:59:59-23:00", "00"),
        position("0001-01-01T00:00:00+23:00", "00"),
    ],
    ids=[
        "short",
        "not ASCII",
        "no key",
        "no hexadecimal",
        "no zone",
        "past the last year",
        "before the first year",
    ],
)
async def test_a_position_that_no_list_gave_is_refused(serve: Serve, after: str) -> None:
    async with serve(Script(says("Hi"))) as talking:
        assert (
            read_error(await talking.client.get(LIST, params={"after": after}), 400)["param"]
            == "after"
        )
        assert (await talking.client.get("/health/ready")).status_code == 200


@SQLITE
async def test_a_limit_that_is_none_is_refused(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        for limit in ("0", "201", "-1", "ten", "1e2", "1000", "\u0661"):
            assert (
                read_error(await talking.client.get(LIST, params={"limit": limit}), 400)["param"]
                == "limit"
            )


# One conversation


async def test_a_conversation_is_shown_with_all_that_belongs_to_it(serve: Serve) -> None:
    async with serve(
        Script(calls(("calculate", {"expression": "6*7"}), text="Well. "), says("42."))
    ) as talking:
        read_completion(await talking.complete("6*7?"))
        shown = await talking.conversation()
    question, answer = shown["messages"]
    assert (shown["agent_id"], shown["session_id"]) == ("helper", "s")
    assert {name: question[name] for name in ("role", "content", "status", "origin", "parent")} == {
        "role": "user",
        "content": "6*7?",
        "status": "complete",
        "origin": "client",
        "parent": None,
    }
    assert "tool_calls" not in question
    assert (answer["role"], answer["content"], answer["origin"]) == (
        "assistant",
        "Well. 42.",
        "ours",
    )
    assert answer["run_id"] == IsStr(regex="run_[0-9a-f]{24}")
    (run,) = answer["tool_calls"]
    assert (run["id"], run["name"], run["arguments"], run["result"], run["is_error"]) == (
        "call_000000001",
        "calculate",
        '{"expression":"6*7"}',
        "42",
        False,
    )
    assert datetime.fromisoformat(question["created_at"]).tzinfo is not None


async def test_a_call_whose_result_is_not_known_is_shown_as_that(serve: Serve) -> None:
    script = Script(calls(("calculate", {"expression": "1"}), ("away", {})), says("ok"))
    tools = [{"type": "function", "function": {"name": "away"}}]
    async with serve(script) as talking:
        read_completion(await talking.complete("?", tools=tools))
        answer = (await talking.conversation())["messages"][1]
    assert answer["status"] == "incomplete"
    assert [(run["name"], run["is_error"]) for run in answer["tool_calls"]] == [
        ("calculate", False),
        ("away", True),
    ]
    assert "No result of this call is known" in answer["tool_calls"][1]["result"]


async def test_only_the_newest_branch_is_shown_unless_all_are_asked_for(serve: Serve) -> None:
    async with serve(Script(says("one"), says("two"), says("three"))) as talking:
        read_completion(await talking.complete("1"))
        read_completion(await talking.complete("1, edited"))
        assert [content for _, content, _ in await talking.shown()] == ["1, edited", "two"]
        assert sorted(content for _, content, _ in await talking.shown(branches="true")) == [
            "1",
            "1, edited",
            "one",
            "two",
        ]


async def test_a_session_id_may_have_any_form_that_headers_bear(serve: Serve) -> None:
    session = "chat/of ada?&#%2F=\u00e9"
    async with serve(Script(says("Hi"))) as talking:
        assert (await talking.chat("Hello", session_id=session)).status_code == 200
        assert names(await listed(talking)) == [session]
        quoted = "chat%2Fof%20ada%3F%26%23%252F%3D%C3%A9"
        assert [content for _, content, _ in await talking.shown(quoted)] == ["Hello", "Hi"]


# Nobody else's


async def test_what_is_not_ones_own_looks_as_if_it_were_not_there(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "s", user="ada")
        absent = read_error(
            await talking.client.get(f"{LIST}/absent", params={"user_id": "ada"}), 404
        )
        for method in ("GET", "DELETE"):
            for path, user in (
                (f"{LIST}/s", "bob"),
                (f"{LIST}/s", ""),
                ("/agents/other/conversations/s", "ada"),
            ):
                assert (
                    read_error(
                        await talking.client.request(method, path, params={"user_id": user}), 404
                    )
                    == absent
                )
        assert (await listed(talking, user_id="bob"))["data"] == []
        assert (
            await talking.client.get("/agents/other/conversations", params={"user_id": "ada"})
        ).json()["data"] == []
        assert (await talking.client.get("/memory", params={"user_id": "bob"})).text == ""
        assert (await talking.client.delete("/memory", params={"user_id": "bob"})).json()[
            "sessions"
        ] == 0
        assert names(await listed(talking, user_id="ada")) == ["s"]


async def test_another_tenant_sees_and_deletes_nothing(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "s", user="ada")
        conversations = talking.service.conversations
        with pytest.raises(NotFoundError):
            await conversations.get("elsewhere", "ada", "helper", "s")
        with pytest.raises(NotFoundError):
            await conversations.delete("elsewhere", "ada", "helper", "s")
        assert await conversations.list("elsewhere", "ada", "helper", limit=10) == ((), None)
        assert [each async for each in conversations.export("elsewhere", "ada")] == []
        assert (await conversations.erase("elsewhere", "ada")).sessions == 0
        assert names(await listed(talking, user_id="ada")) == ["s"]


async def test_an_agent_without_memory_has_no_conversations(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        read_completion(await talking.complete("Hello", model="forgetful"))
        assert (await talking.client.get("/agents/forgetful/conversations")).json() == {
            "data": [],
            "next": None,
        }
        read_error(await talking.client.get("/agents/forgetful/conversations/s"), 404)


@SQLITE
async def test_an_unknown_agent_is_a_404(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        for method, path in (("GET", ""), ("GET", "/s"), ("DELETE", "/s")):
            error = read_error(
                await talking.client.request(method, f"/agents/nobody/conversations{path}"), 404
            )
            assert error["code"] == "model_not_found"


@SQLITE
async def test_a_service_without_memory_says_so(serve: Serve) -> None:
    async with serve(Script(says("Hi")), agents=[{**HELPER, "resources": []}]) as talking:
        for method, path in ROUTES:
            assert (
                read_error(await talking.client.request(method, path), 404)["code"] == "no_memory"
            )


@SQLITE
async def test_nul_in_a_user_id_is_refused(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        for method, path in ROUTES:
            response = await talking.client.request(method, path, params={"user_id": "a\x00b"})
            assert read_error(response, 400)["param"] == "user_id"


async def test_a_user_id_that_is_too_long_to_be_stored_is_refused(serve: Serve) -> None:
    endless = os.urandom(20_000).hex()
    async with serve(Script(says("Hi"))) as talking:
        assert read_error(await talking.complete("Hello", user=endless), 400)["param"] == "user"
        assert read_error(await talking.chat("Hello", user_id=endless), 400)["param"] == "user_id"


# Export and deletion


async def test_everything_is_exported_as_json_lines(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "a", "b", user="ada")
        await begin(talking, "a", user="bob")
        read_completion(
            await talking.complete(
                "Hello", headers={"X-Session-Id": "a"}, model="other", user="ada"
            )
        )
        read_completion(
            await talking.complete("Hello, edited", headers={"X-Session-Id": "a"}, user="ada")
        )
        response = await talking.client.get("/memory", params={"user_id": "ada"})
        assert response.headers["content-type"] == "application/jsonl"
        exported = [json.loads(line) for line in response.text.splitlines()]
        shown = await talking.conversation("a", user_id="ada", branches="true")
    assert sorted(
        (each["agent_id"], each["session_id"], len(each["messages"])) for each in exported
    ) == [
        ("helper", "a", 4),
        ("helper", "b", 2),
        ("other", "a", 2),
    ]
    assert shown in exported


async def test_an_export_goes_on_past_its_first_page(serve: Serve) -> None:
    async with serve(Script(says("Hi")), max_concurrent_requests=200) as talking:
        sessions = [f"session {number}" for number in range(105)]
        await asyncio.gather(
            *(talking.complete("Hello", headers={"X-Session-Id": session}) for session in sessions)
        )
        exported = [
            json.loads(line) for line in (await talking.client.get("/memory")).text.splitlines()
        ]
    assert sorted(each["session_id"] for each in exported) == sorted(sessions)


async def test_a_deleted_conversation_is_gone_for_good(serve: Serve, stored: Database) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "s", "kept")
        assert (await talking.client.delete(f"{LIST}/s")).json() == {
            "sessions": 1,
            "messages": 2,
            "runs": 1,
            "summaries": 0,
        }
        read_error(await talking.client.get(f"{LIST}/s"), 404)
        read_error(await talking.client.delete(f"{LIST}/s"), 404)
        assert names(await listed(talking)) == ["kept"]
    assert await stored.value("SELECT count(*) FROM nodes") == 2
    assert await stored.value("SELECT count(*) FROM runs") == 1


async def test_a_deleted_session_may_be_begun_anew(serve: Serve) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "s")
        assert (await talking.client.delete(f"{LIST}/s")).status_code == 200
        assert (await talking.chat("New")).status_code == 200
        assert [content for _, content, _ in await talking.shown()] == ["New", "Hi"]


async def test_everything_of_a_user_is_erased_with_all_agents_and_nothing_else(
    serve: Serve, stored: Database
) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "a", "b", user="ada")
        read_completion(await talking.complete("Hello", model="other", user="ada"))
        await begin(talking, "a", user="bob")
        erased = (await talking.client.delete("/memory", params={"user_id": "ada"})).json()
        assert erased == {"sessions": 3, "messages": 6, "runs": 3, "summaries": 0}
        assert (await talking.client.get("/memory", params={"user_id": "ada"})).text == ""
        assert names(await listed(talking, user_id="bob")) == ["a"]
    for table in ("sessions", "nodes", "runs"):
        assert await stored.value(f"SELECT count(*) FROM {table} WHERE user_id = 'ada'") == 0


async def test_a_conversation_that_is_interrupted_is_exported_as_such(serve: Serve) -> None:
    async with serve(
        Script([TextDelta("It is"), ProviderUnavailableError("It is down.")])
    ) as talking:
        read_error(await talking.complete("?"), 502)
        (exported,) = [
            json.loads(line) for line in (await talking.client.get("/memory")).text.splitlines()
        ]
    assert [(message["content"], message["status"]) for message in exported["messages"]] == [
        ("?", "complete"),
        ("It is", "incomplete"),
    ]


# A replica

REPLICATED = pytest.mark.parametrize("database", ["replicated"], indirect=True)


@pytest.fixture
def paused(stored: Database) -> Generator[Database, None, None]:
    """A database with a replica, which takes over nothing new once `pause` was called with it."""
    yield stored
    with contextlib.suppress(AssertionError):
        stored.under_test.replica.sql("SELECT pg_wal_replay_resume()")


def pause(database: Database) -> None:
    """Has the replica show what the primary has now, and nothing later."""
    primary, replica = database.under_test.server, database.under_test.replica
    replica.caught_up_with(primary)
    replica.sql("SELECT pg_wal_replay_pause()")


CHANGED = "UPDATE nodes SET body = '\"changed\"' WHERE role = 'assistant'"
"""A change of which the service knows nothing, that tells the primary from the replica."""


@REPLICATED
async def test_a_conversation_is_read_from_the_replica_that_has_it(
    serve: Serve, paused: Database
) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "s")
        pause(paused)
        await paused.rows(CHANGED)
        assert [content for _, content, _ in await talking.shown()] == ["Hello", "Hi"]


@REPLICATED
async def test_the_servers_history_is_read_from_the_replica_that_has_it(
    serve: Serve, paused: Database
) -> None:
    async with serve(Script(says("one"))) as talking:
        assert (await talking.chat("1")).status_code == 200
        pause(paused)
        await paused.rows(CHANGED)
        assert (await talking.chat("2")).status_code == 200
        assert [text for _, text in talking.asked()] == ["1", "one", "2"]


@REPLICATED
async def test_a_user_reads_what_they_just_wrote_though_the_replica_lags(
    serve: Serve, paused: Database
) -> None:
    async with serve(Script(says("one"), says("two"), says("three"))) as talking:
        assert (await talking.chat("1")).status_code == 200
        pause(paused)
        assert (await talking.chat("2")).status_code == 200
        assert [content for _, content, _ in await talking.shown()] == ["1", "one", "2", "two"]
        assert (await talking.chat("3")).status_code == 200
        assert [text for _, text in talking.asked()] == ["1", "one", "2", "two", "3"]
        exported = [
            json.loads(line) for line in (await talking.client.get("/memory")).text.splitlines()
        ]
        assert [message["content"] for message in exported[0]["messages"]] == [
            "1",
            "one",
            "2",
            "two",
            "3",
            "three",
        ]


@REPLICATED
async def test_a_session_that_the_replica_does_not_have_yet_is_shown(
    serve: Serve, paused: Database
) -> None:
    async with serve(Script(says("Hi"))) as talking:
        pause(paused)
        await begin(talking, "s")
        assert [content for _, content, _ in await talking.shown()] == ["Hello", "Hi"]


@REPLICATED
async def test_what_was_deleted_is_gone_though_the_replica_still_has_it(
    serve: Serve, paused: Database
) -> None:
    async with serve(Script(says("Hi"))) as talking:
        await begin(talking, "s")
        pause(paused)
        assert (await talking.client.delete(f"{LIST}/s")).status_code == 200
        read_error(await talking.client.get(f"{LIST}/s"), 404)
        assert (await talking.client.get("/memory")).text == ""
        assert (await talking.chat("New")).status_code == 200
        assert talking.asked() == [("user", "New")]


@REPLICATED
async def test_the_primary_is_read_where_the_replica_never_answers(
    serve: Serve, paused: Database
) -> None:
    url = paused.under_test.url.replace(f":{paused.under_test.server.port}/", f":{free_port()}/")
    async with serve(Script(says("one")), database_replica_url=url) as talking:
        assert (await talking.chat("1")).status_code == 200
        assert [content for _, content, _ in await talking.shown()] == ["1", "one"]
        assert (await talking.chat("2")).status_code == 200
        assert [text for _, text in talking.asked()] == ["1", "one", "2"]
        health = (await talking.client.get("/health?detailed=true")).json()
        assert (health["status"], health["database"]["state"], health["database"]["replica"]) == (
            "degraded",
            "ready",
            "down",
        )
        assert (await talking.client.get("/health/ready")).status_code == 200


@SQLITE
@pytest.mark.timeout(120)
async def test_a_replica_that_dies_is_done_without_until_it_is_back(serve: Serve) -> None:
    primary = await asyncio.to_thread(PostgresServer(binaries_18()).make().start)
    replica = await asyncio.to_thread(primary.replica)
    try:
        async with serve(
            Script(says("one")), database_url=primary.url(), database_replica_url=replica.url()
        ) as talking:
            assert (await talking.chat("1")).status_code == 200
            replica.caught_up_with(primary)

            async def state() -> str:
                assert [content for _, content, _ in await talking.shown()] == ["1", "one"]
                found: str = (await talking.client.get("/health?detailed=true")).json()["database"][
                    "replica"
                ]
                return found

            async def is_back() -> bool:
                return await state() == "ready"

            assert await is_back()
            await asyncio.to_thread(replica.kill)
            assert await state() == "down"
            await asyncio.to_thread(replica.start)
            await until(is_back)
    finally:
        await asyncio.to_thread(replica.remove)
        await asyncio.to_thread(primary.remove)
