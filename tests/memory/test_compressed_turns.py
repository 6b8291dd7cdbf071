"""Turns whose older messages became a summary: when it is made, what the model is shown, and for
which conversations it stands."""

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from ai_agent_service.core.errors import ContextTooLongError, ProviderUnavailableError, ServiceError
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.messages import Message
from ai_agent_service.memory.summaries import DEFAULT_PROMPT
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.runtime.plugin_loader import load_plugins
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, join_deltas, read_chunks, read_error
from tests.support.fake_provider import Script, calls
from tests.support.memory import in_turn
from tests.support.service import AGENT, configuration, open_client

SMALL = {"threshold_tokens": 200, "recent_messages_to_keep": 2}
"""One long question fits the threshold with its answer, two do not."""

AGAIN = {"x-stainless-retry-count": "1"}
"""What says that a request may have been sent before."""

MARK = re.compile(r"mark\d+")


def long(name: str) -> str:
    """A question of about 120 tokens; `name` is in it, first and last."""
    return f"{name} {'about apples ' * 60}{name}"


class Talker(Script):
    """Answers the chat with `answer 1`, `answer 2` and so on, or a call of `calculate` where the
    question asks to; makes summaries.

    A summary is `summary 1` and so on, with all that looks like `mark12` in what it was given.
    `gate` has it wait, `failures` are raised instead of the next ones (an empty text is said
    instead), and a chat of more than `characters` is too long.
    """

    def __init__(self, name: str = "scripted") -> None:
        super().__init__()
        self.name = name
        self.turns: list[ModelRequest] = []
        self.summaries: list[ModelRequest] = []
        self.gate: asyncio.Event | None = None
        self.failures: list[ServiceError | str] = []
        self.characters: int | None = None

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The next answer or the next summary."""
        events = (
            self._turn(request)
            if request.messages[0].text.startswith("You help.")
            else self._summary(request)
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def _turn(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        self.turns.append(request)
        if self.characters is not None and len(shown(request)) > self.characters:
            raise ContextTooLongError("This does not fit.", param="messages")
        last = request.messages[-1]
        if last.role == "user" and last.text.startswith("calculate"):
            for event in calls(("calculate", {"expression": "6*7"}), text="Let me see. "):
                assert not isinstance(event, Exception | asyncio.Event | float)
                yield event
            return
        yield TextDelta(f"answer {len(self.turns)}")
        yield ModelFinished("stop")

    async def _summary(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        self.summaries.append(request)
        number = len(self.summaries)
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, ServiceError):
            raise failure
        marks = MARK.findall(request.messages[1].text)
        yield TextDelta(f"summary {number} {' '.join(marks)}" if failure is None else failure)
        yield ModelFinished("stop")


def shown(request: ModelRequest) -> str:
    """All text that a model is sent, system messages included."""
    return "\n".join(message.text for message in request.messages)


def window(request: ModelRequest) -> list[Message]:
    """What a model is sent beside the system message."""
    return [message for message in request.messages if message.role != "system"]


def remembering(
    agent_id: str = "helper", *, memory: dict[str, Any] | None = None, **compression: Any
) -> dict[str, Any]:
    """An agent with a memory that is compressed early."""
    return {
        **AGENT,
        "agent_id": agent_id,
        "resources": ["memory"],
        "resource_config": {"memory": {**(memory or {}), "compression": {**SMALL, **compression}}},
    }


class Client:
    """A client of the service as OpenAI's are: it keeps the conversation and sends all of it."""

    def __init__(self, http: httpx2.AsyncClient, app: FastAPI) -> None:
        self.http = http
        self._app = app

    async def ask(
        self,
        *messages: dict[str, Any] | str,
        session: str = "monday",
        user: str = "ada",
        model: str = "helper",
    ) -> tuple[dict[str, Any], ...]:
        """The conversation of `messages` (texts are the user's and the assistant's in turn) with
        its answer.

        What an earlier turn left to be done in the background is waited for, as no summary is made
        while another one is.
        """
        sent = conversation(*messages)
        await self.settled()
        response = await self.posted(sent, session=session, user=user, model=model)
        return (*sent, {"role": "assistant", "content": join_deltas(read_chunks(response))})

    async def posted(
        self,
        sent: Sequence[dict[str, Any]],
        *,
        session: str = "monday",
        user: str = "ada",
        model: str = "helper",
        headers: dict[str, str] | None = None,
    ) -> httpx2.Response:
        """The response to a whole conversation."""
        body = {"model": model, "messages": list(sent), "user": user, "stream": True}
        async with asyncio.timeout(30):
            return await self.http.post(
                CHAT, json=body, headers={"X-Session-Id": session, **(headers or {})}
            )

    async def say(
        self, text: str, session: str = "monday", *, headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        """The response to one message, which goes on from the server's history."""
        body = {"message": text, "session_id": session, "user_id": "ada"}
        async with asyncio.timeout(30):
            response = await self.http.post("/agents/helper/chat", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response

    async def settled(self) -> None:
        """Waits until nothing is done in the background."""
        tasks = self._app.state.service.memories.tasks
        async with asyncio.timeout(30):
            while len(tasks):  # noqa: ASYNC110 - tasks come and go
                await asyncio.sleep(0.005)

    async def stored(self, session: str = "monday") -> list[tuple[str, str, str]]:
        """Role, content and status of each stored message of all branches."""
        response = await self.http.get(
            f"/agents/helper/conversations/{session}", params={"user_id": "ada", "branches": "true"}
        )
        assert response.status_code == 200, response.text
        return [
            (message["role"], message["content"], message["status"])
            for message in response.json()["messages"]
        ]


def conversation(*messages: dict[str, Any] | str) -> tuple[dict[str, Any], ...]:
    return tuple(in_turn(messages))


@asynccontextmanager
async def service(
    folder: Path, talker: Talker, *agents: dict[str, Any], **settings: Any
) -> AsyncGenerator[Client, None]:
    """The service with `talker` as its provider; its data stay in `folder`."""
    app = create_app(
        configuration(
            folder,
            talker,
            agents=agents or (remembering(),),
            **{"database_timeout": 30, **settings},
        )
    )
    async with open_client(app) as http:
        yield Client(http, app)


async def compressed(
    client: Client, session: str = "monday", **fields: str
) -> tuple[dict[str, Any], ...]:
    """A conversation of two long questions and their answers, the first of which are in a summary
    now."""
    first = await client.ask(long("red"), session=session, **fields)
    whole = await client.ask(*first, long("green"), session=session, **fields)
    await client.settled()
    return whole


def runs_in(folder: Path) -> list[tuple[str, str | None]]:
    """Status and error of every stored run."""
    with closing(sqlite3.connect(folder / "data" / "ai-agent-service.db")) as database:
        return list(database.execute("SELECT status, error FROM runs ORDER BY started_at"))


# When it is made, and what the model is shown


async def test_older_messages_become_a_summary_after_the_answer_and_not_in_its_way(
    tmp_path: Path,
) -> None:
    talker = Talker()
    talker.gate = asyncio.Event()
    async with service(tmp_path, talker) as client:
        whole = await client.ask(*await client.ask(long("red")), long("green"))
        await asyncio.wait_for(talker.waiting.wait(), 20)
        assert whole[-1]["content"] == "answer 2"
        assert [status for _, _, status in await client.stored()] == ["complete"] * 4
        meanwhile = await client.posted((*whole, *conversation("blue")))
        assert join_deltas(read_chunks(meanwhile)) == "answer 3"
        assert len(window(talker.turns[-1])) == 5
        talker.gate.set()
        await client.ask(*whole, "violet")
        assert "summary 1" in shown(talker.turns[-1])


async def test_the_next_turn_sees_the_summary_and_the_last_messages_and_no_older_text(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        await client.ask(*await compressed(client), "blue")
        request = talker.turns[-1]
        assert [(message.role, message.text) for message in window(request)] == [
            ("user", long("green")),
            ("assistant", "answer 2"),
            ("user", "blue"),
        ]
        assert "summary 1" in request.messages[0].text
        assert "red" not in shown(request)
        assert "answer 1" not in shown(request)
        given = talker.summaries[0].messages[1].text
        assert long("red") in given
        assert "answer 1" in given
        assert "green" not in given


async def test_originals_stay_in_the_database(tmp_path: Path) -> None:
    async with service(tmp_path, Talker()) as client:
        whole = await compressed(client)
        assert [(role, content) for role, content, _ in await client.stored()] == [
            (each["role"], each["content"]) for each in whole
        ]


async def test_below_the_threshold_no_summary_is_asked_for(tmp_path: Path) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        whole = await client.ask(long("red"))
        for _ in range(3):
            whole = await client.ask(*whole, "ok")
        await client.settled()
        assert talker.summaries == []
        assert len(window(talker.turns[-1])) == len(whole) - 1


async def test_without_compression_no_summary_is_asked_for(tmp_path: Path) -> None:
    talker = Talker()
    async with service(tmp_path, talker, remembering(enabled=False)) as client:
        await client.ask(*await compressed(client), "blue")
        await client.settled()
        assert talker.summaries == []
        assert len(window(talker.turns[-1])) == 5


async def test_the_setting_of_the_environment_is_the_threshold_of_agents_that_name_none(
    tmp_path: Path,
) -> None:
    talker = Talker()
    agents = (remembering(threshold_tokens=None), remembering("patient"))
    async with service(tmp_path, talker, *agents, memory_compression_token_threshold=100) as client:
        for model, summaries in (("patient", 0), ("helper", 1)):
            await client.ask(*await client.ask("ok", model=model), long("red"), model=model)
            await client.settled()
            assert len(talker.summaries) == summaries


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
async def test_what_the_model_is_shown_begins_with_a_question_and_has_the_last_messages(
    tmp_path: Path, keep: int
) -> None:
    talker = Talker()
    async with service(tmp_path, talker, remembering(recent_messages_to_keep=keep)) as client:
        whole = await client.ask(
            "violet", "answer 0", *await client.ask(long("red")), long("green")
        )
        await client.settled()
        await client.ask(*whole, "blue")
        seen = window(talker.turns[-1])
        assert seen[0].role == "user"
        assert len(seen) == 1 + (keep + 1) // 2 * 2
        assert [message.text for message in seen[:-1]] == [
            message["content"] for message in whole[-len(seen) + 1 :]
        ]


async def test_a_conversation_that_is_all_recent_is_not_summarised(tmp_path: Path) -> None:
    talker = Talker()
    async with service(tmp_path, talker, remembering(recent_messages_to_keep=10)) as client:
        await client.ask(*await compressed(client), "blue")
        await client.settled()
        assert talker.summaries == []


async def test_calls_and_their_results_stay_together_on_either_side_of_the_cut(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker, remembering(recent_messages_to_keep=1)) as client:
        whole = await client.ask(*await client.ask(long("red")), "calculate " + long("green"))
        await client.settled()
        assert len(talker.summaries) == 1
        whole = await client.ask(*whole, long("blue"))
        seen = window(talker.turns[-1])
        assert [message.role for message in seen] == [
            "user",
            "assistant",
            "tool",
            "assistant",
            "user",
        ]
        assert [call.id for call in seen[1].tool_calls] == [seen[2].tool_call_id]
        await client.settled()
        given = talker.summaries[1].messages[1].text
        assert "calculate with" in given
        assert "Result of a tool: 42" in given
        await client.ask(*whole, "last")
        assert [message.role for message in window(talker.turns[-1])] == [
            "user",
            "assistant",
            "user",
        ]


# For which conversations it stands


async def test_a_regenerated_answer_and_a_branch_below_the_cut_use_the_summary_without_another_one(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        whole = await compressed(client)
        for question in (long("green"), "quite another question"):
            await client.ask(*whole[:2], question)
            assert [message.text for message in window(talker.turns[-1])] == [question]
            assert "summary 1" in shown(talker.turns[-1])
        await client.settled()
        assert len(talker.summaries) == 1


@pytest.mark.parametrize("changed", [0, 1])
async def test_an_edit_above_the_cut_is_not_shown_the_summary(tmp_path: Path, changed: int) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        whole = list(await compressed(client))
        whole[changed] = {**whole[changed], "content": "something else"}
        await client.ask(*whole, "blue")
        assert "summary" not in shown(talker.turns[-1])
        assert len(window(talker.turns[-1])) == 5


async def test_the_next_summary_is_made_of_the_last_one_and_what_came_since(tmp_path: Path) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        whole = await client.ask(*await compressed(client), long("blue"))
        await client.settled()
        assert len(talker.summaries) == 2
        given = talker.summaries[1].messages[1].text
        assert given.index("summary 1") < given.index(long("green")) < given.index("answer 2")
        assert "red" not in given
        assert "blue" not in given
        await client.ask(*whole, "violet")
        assert "summary 2" in shown(talker.turns[-1])
        assert not re.search("summary 1|red|green", shown(talker.turns[-1]))


async def test_a_turn_that_goes_on_from_before_the_newest_summary_is_shown_the_one_before(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        whole = await client.ask(*await compressed(client), long("blue"))
        await client.settled()
        await client.ask(*whole[:2], "another second question")
        assert "summary 1" in shown(talker.turns[-1])
        assert [message.text for message in window(talker.turns[-1])] == ["another second question"]


@pytest.mark.parametrize("other", [{"user": "eve"}, {"session": "tuesday"}, {"model": "second"}])
async def test_the_same_words_in_another_conversation_are_not_shown_the_summary(
    tmp_path: Path, other: dict[str, str]
) -> None:
    talker = Talker()
    async with service(tmp_path, talker, remembering(), remembering("second")) as client:
        whole = await compressed(client)
        await client.ask(*whole, "blue", **other)
        assert "summary" not in shown(talker.turns[-1])
        assert len(window(talker.turns[-1])) == 5


async def test_a_summary_is_there_after_a_restart(tmp_path: Path) -> None:
    async with service(tmp_path, Talker()) as client:
        whole = await compressed(client)
    talker = Talker()
    async with service(tmp_path, talker) as client:
        await client.ask(*whole, "blue")
        assert "summary 1" in shown(talker.turns[0])
        assert "red" not in shown(talker.turns[0])
        assert talker.summaries == []


async def test_with_other_settings_another_summary_is_made_of_the_originals(tmp_path: Path) -> None:
    async with service(tmp_path, Talker()) as client:
        whole = await compressed(client)
    (tmp_path / "prompts" / "shorten.txt").write_text("Shorten this.", encoding="utf-8")
    talker = Talker()
    async with service(tmp_path, talker, remembering(prompt_file="shorten.txt")) as client:
        whole = await client.ask(*whole, "blue")
        assert "summary" not in shown(talker.turns[-1])
        await client.settled()
        assert talker.summaries[0].messages[0].text == "Shorten this."
        assert "red" in talker.summaries[0].messages[1].text
        await client.ask(*whole, "violet")
        assert f"summary {len(talker.summaries)}" in shown(talker.turns[-1])
        assert "red" not in shown(talker.turns[-1])


async def test_a_conversation_that_was_deleted_takes_its_summary_with_it(tmp_path: Path) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        whole = await compressed(client)
        deleted = await client.http.delete(
            "/agents/helper/conversations/monday", params={"user_id": "ada"}
        )
        assert deleted.json()["summaries"] == 1
        await client.ask(*whole, "blue")
        assert "summary" not in shown(talker.turns[-1])


# What makes it


async def test_a_summary_is_asked_of_the_agents_own_model_with_the_built_in_prompt(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(
        tmp_path,
        talker,
        {**remembering(), "model": "large", "model_settings": {"temperature": 0.1}},
    ) as client:
        await compressed(client)
        [asked] = talker.summaries
        assert (asked.model, asked.messages[0].text, asked.settings) == (
            "large",
            DEFAULT_PROMPT,
            {"temperature": 0.1},
        )


async def test_a_model_that_is_named_makes_the_summaries(tmp_path: Path) -> None:
    talker = Talker()
    async with service(
        tmp_path, talker, {**remembering(model="small"), "model": "large"}
    ) as client:
        await compressed(client)
        assert [request.model for request in (*talker.turns, *talker.summaries)] == [
            "large",
            "large",
            "small",
        ]


async def test_an_agent_that_is_named_makes_the_summaries_with_its_provider_model_and_settings(
    tmp_path: Path,
) -> None:
    talker, other = Talker(), Talker("cheap")
    plugins = load_plugins()[0]
    plugins.providers["cheap"] = other
    cheap = {
        **AGENT,
        "agent_id": "cheap",
        "provider": "cheap",
        "model": "tiny",
        "model_settings": {"top_p": 0.5},
    }
    async with service(
        tmp_path, talker, remembering(agent="cheap"), cheap, plugins=plugins
    ) as client:
        await compressed(client)
        [asked] = other.summaries
        assert (asked.model, asked.settings, asked.tools) == ("tiny", {"top_p": 0.5}, ())
        assert asked.messages[0].text == DEFAULT_PROMPT
        assert (talker.summaries, other.turns) == ([], [])


# What fails


@pytest.mark.parametrize(
    "failure", [ProviderUnavailableError("It is down."), ContextTooLongError("Too long."), ""]
)
async def test_a_summary_that_fails_leaves_the_chat_working_and_is_tried_again_after_the_next_turn(
    tmp_path: Path, failure: ServiceError | str, caplog: pytest.LogCaptureFixture
) -> None:
    talker = Talker()
    talker.failures = [failure]
    async with service(tmp_path, talker) as client:
        whole = await compressed(client)
        [logged] = [
            record for record in caplog.records if record.message == "memory.compression_failed"
        ]
        assert (logged.levelname, logged.exc_info) == ("WARNING", None)
        whole = await client.ask(*whole, "blue")
        assert len(window(talker.turns[-1])) == 5
        await client.settled()
        assert long("red") in talker.summaries[1].messages[1].text
        await client.ask(*whole, "violet")
        assert f"summary {len(talker.summaries)}" in shown(talker.turns[-1])
        assert "red" not in shown(talker.turns[-1])


async def test_a_conversation_that_the_model_finds_too_long_is_summarised_and_asked_again_unseen(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker, remembering(threshold_tokens=100_000)) as client:
        whole = await client.ask(*await client.ask(long("red")), long("green"))
        talker.characters = len(shown(talker.turns[-1]))
        response = await client.posted((*whole, *conversation("blue")))
        chunks = read_chunks(response)
        assert [
            choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]
        ] == ["", "answer 4", None]
        refused, answered = talker.turns[-2:]
        assert [message.text for message in window(refused)] == [
            *(each["content"] for each in whole),
            "blue",
        ]
        assert [message.text for message in window(answered)] == [long("green"), "answer 2", "blue"]
        assert "summary 1" in shown(answered)
        await client.settled()
        assert len(talker.summaries) == 1
        assert [content for _, content, _ in await client.stored()] == [
            *(each["content"] for each in whole),
            "blue",
            "answer 4",
        ]
        await client.ask(
            *whole, *conversation("blue"), {"role": "assistant", "content": "answer 4"}, "violet"
        )
        assert "summary 1" in shown(talker.turns[-1])
        assert len(talker.summaries) == 1


@pytest.mark.parametrize(("threshold", "left"), [(100_000, 3), (200, 1)])
async def test_recent_messages_that_are_too_long_by_themselves_are_summarised_too(
    tmp_path: Path, threshold: int, left: int
) -> None:
    talker = Talker()
    async with service(
        tmp_path, talker, remembering(threshold_tokens=threshold, recent_messages_to_keep=50)
    ) as client:
        whole = await client.ask(*await client.ask(long("red")), long("green"))
        talker.characters = len(shown(talker.turns[-1]))
        await client.ask(*whole, "blue")
        assert [message.text for message in window(talker.turns[-1])] == [
            long("green"),
            "answer 2",
            "blue",
        ][-left:]
        assert f"summary {len(talker.summaries)}" in shown(talker.turns[-1])


async def test_a_conversation_that_stays_too_long_is_told_to_the_caller_and_its_turn_is_incomplete(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        whole = await client.ask(long("red"))
        talker.characters = 10
        error = read_error(await client.posted((*whole, *conversation("blue"))), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert len(talker.turns) == 3
        assert (await client.stored())[-1] == ("user", "blue", "complete")
        assert runs_in(tmp_path) == [("done", None), ("incomplete", "context_length_exceeded")]


async def test_a_conversation_that_is_too_long_for_summaries_too_is_told_to_the_caller(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        whole = await client.ask(long("red"))
        talker.characters = 10
        talker.failures = [ContextTooLongError("Too long.")] * 100
        error = read_error(await client.posted((*whole, *conversation("blue"))), 400)
        assert error["code"] == "context_length_exceeded"
        assert runs_in(tmp_path)[-1] == ("incomplete", "context_length_exceeded")
        talker.characters, talker.failures = None, []
        await client.ask(*whole, "blue")


async def test_without_compression_a_conversation_that_is_too_long_is_told_to_the_caller(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker, remembering(enabled=False)) as client:
        whole = await client.ask(long("red"))
        talker.characters = 10
        assert (
            read_error(await client.posted((*whole, *conversation("blue"))), 400)["code"]
            == "context_length_exceeded"
        )
        assert (len(talker.turns), talker.summaries) == (2, [])


# The server's history


def missing_in(talker: Talker, until: int) -> list[str]:
    """Those of `mark0` to `mark<until - 1>` that the model was not shown last, in words or in a
    summary."""
    seen = set(MARK.findall(shown(talker.turns[-1])))
    return [mark for number in range(until) if (mark := f"mark{number}") not in seen]


async def said_all(client: Client, talker: Talker, turns: int) -> None:
    for number in range(turns):
        await client.say(f"mark{number}")
        assert missing_in(talker, number + 1) == []
        await client.settled()


async def test_the_servers_history_is_shown_as_a_summary_and_the_last_messages(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        for question in (long("red"), long("green"), "blue"):
            await client.say(question)
            await client.settled()
        assert [message.text for message in window(talker.turns[-1])] == [
            long("green"),
            "answer 2",
            "blue",
        ]
        assert "summary 1" in shown(talker.turns[-1])
        assert "red" not in shown(talker.turns[-1])


async def test_a_question_of_the_servers_history_is_known_again_though_a_summary_covers_it(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        await compressed(client)
        await client.posted(
            conversation(long("red")), headers=AGAIN
        )  # and so the answer that the summary covers is the newest
        assert (
            json.loads((await client.say(long("red"), headers=AGAIN)).content)["response"]
            == "answer 1"
        )
        assert len(talker.turns) == 2
        await client.say("blue")
        assert [message.text for message in window(talker.turns[-1])] == ["blue"]
        assert "summary 1" in shown(talker.turns[-1])


@pytest.mark.parametrize("question", ["blue", "green"])
async def test_a_turn_of_the_servers_history_that_is_run_again_is_shown_what_was_before_it(
    tmp_path: Path, question: str
) -> None:
    talker = Talker()
    async with service(tmp_path, talker) as client:
        for text in (long("red"), long("green"), *(("blue",) if question == "blue" else ())):
            await client.say(text)
            await client.settled()
        with (
            closing(sqlite3.connect(tmp_path / "data" / "ai-agent-service.db")) as database,
            database,
        ):
            database.execute("UPDATE runs SET status = 'incomplete'")
        again = question if question == "blue" else long(question)
        await client.say(again, headers=AGAIN)
        before = [long("green"), "answer 2"] if question == "blue" else []
        assert [message.text for message in window(talker.turns[-1])] == [*before, again]
        assert "summary 1" in shown(talker.turns[-1])


@pytest.mark.parametrize(("history", "keep"), [(8, 2), (20, 10)])
async def test_a_long_session_of_short_messages_loses_none_of_them(
    tmp_path: Path, history: int, keep: int
) -> None:
    talker = Talker()
    agent = remembering(
        memory={"history_messages": history}, threshold_tokens=8000, recent_messages_to_keep=keep
    )
    async with service(tmp_path, talker, agent) as client:
        await said_all(client, talker, 30)
        assert 0 < len(talker.summaries) < 15
        assert len(window(talker.turns[-1])) <= history


async def test_as_many_recent_messages_as_the_history_has_lose_none(tmp_path: Path) -> None:
    talker = Talker()
    agent = remembering(
        memory={"history_messages": 10}, threshold_tokens=8000, recent_messages_to_keep=10
    )
    async with service(tmp_path, talker, agent) as client:
        await said_all(client, talker, 15)


async def test_a_long_session_loses_nothing_while_no_summary_can_be_made(tmp_path: Path) -> None:
    talker = Talker()
    agent = remembering(memory={"history_messages": 8}, threshold_tokens=8000)
    async with service(tmp_path, talker, agent) as client:
        talker.failures = [ProviderUnavailableError("It is down.")] * 6
        for number in range(15):
            await client.say(f"mark{number}")
            await client.settled()
        assert missing_in(talker, 15) == []


async def test_a_conversation_that_clients_led_loses_nothing_when_the_server_goes_on_with_it(
    tmp_path: Path,
) -> None:
    talker = Talker()
    agent = remembering(memory={"history_messages": 8}, threshold_tokens=8000)
    async with service(tmp_path, talker, agent) as client:
        whole: tuple[dict[str, Any], ...] = ()
        for number in range(10):
            whole = await client.ask(*whole, f"mark{number}")
        await client.settled()
        await client.say("mark10")
        assert missing_in(talker, 11) == []


async def test_without_compression_the_model_is_shown_the_newest_of_the_servers_history(
    tmp_path: Path,
) -> None:
    talker = Talker()
    agent = remembering(memory={"history_messages": 4}, enabled=False)
    async with service(tmp_path, talker, agent) as client:
        for number in range(6):
            await client.say(f"mark{number}")
        assert [message.text for message in window(talker.turns[-1])] == [
            "mark3",
            "answer 4",
            "mark4",
            "answer 5",
            "mark5",
        ]
        assert talker.summaries == []


async def test_a_server_conversation_that_is_too_long_for_the_model_is_summarised_and_asked_again(
    tmp_path: Path,
) -> None:
    talker = Talker()
    async with service(tmp_path, talker, remembering(threshold_tokens=100_000)) as client:
        await client.say(long("red"))
        await client.say(long("green"))
        talker.characters = len(shown(talker.turns[-1]))
        answer = json.loads((await client.say("blue")).content)
        assert (answer["response"], answer["steps"]) == ("answer 4", 1)
        assert "summary 1" in shown(talker.turns[-1])
        await client.say("violet")
        assert "summary 1" in shown(talker.turns[-1])
        assert len(talker.summaries) == 1
