"""Models with a context window that is smaller than the memory's threshold: no session gets
stuck."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.core.errors import ContextTooLongError
from ai_agent_service.memory.sql_memory import LEFT_OUT
from ai_agent_service.memory.summaries import SUMMARY_TOKENS
from ai_agent_service.providers.base import ModelEvent, ModelRequest
from tests.memory.test_compressed_turns import (
    Client,
    Talker,
    conversation,
    remembering,
    service,
    shown,
)
from tests.support.clients import read_error

DEFAULTS: dict[str, Any] = {"threshold_tokens": 8000, "recent_messages_to_keep": 10}


class SmallModel(Talker):
    """Refuses more than `window` characters, of chats and of what it is to summarise; says what its
    window is in tokens if `states` is set."""

    def __init__(self, window: int, *, states: bool = False) -> None:
        super().__init__()
        self.window = window
        self.states = states
        self.asked = 0
        self.asked_until_answer = 0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The next answer or the next summary."""
        self.asked += 1
        if len(shown(request)) > self.window:
            tokens = self.window // 4 if self.states else None
            raise ContextTooLongError("This does not fit.", param="messages", window=tokens)
        if request.messages[0].text.startswith("You help."):
            self.asked_until_answer = self.asked
        async for event in super().stream(request):
            yield event


async def take_turns(
    client: Client, model: SmallModel, turns: int, *, server: bool, words: int = 30
) -> list[int]:
    """Take `turns` turns, each of which must be answered; return the requests that each took."""
    whole: tuple[dict[str, Any], ...] = ()
    took = []
    for number in range(turns):
        before, question = model.asked, f"mark{number} " + "about apples " * words
        if server:
            await client.say(question)
        else:
            whole = await client.ask(*whole, question)
            assert whole[-1]["content"].startswith("answer")
        await client.settled()
        took.append(model.asked - before)
    return took


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
@pytest.mark.parametrize("states", [True, False], ids=["stated", "unstated"])
@pytest.mark.parametrize("window", [2500, 6000])
async def test_every_turn_of_a_long_session_is_answered_with_few_more_requests(
    tmp_path: Path, window: int, states: bool, server: bool
) -> None:
    model = SmallModel(window, states=states)
    async with service(tmp_path, model, remembering(**DEFAULTS)) as client:
        took = await take_turns(client, model, 40, server=server)
        stored = await client.stored()
    assert max(took) <= 8, took
    assert sum(took) <= 2.5 * len(took), took
    assert max(took[20:]) <= 4, "the window is known by then"
    questions = [content for role, content, _ in stored if role == "user"]
    assert [question.split()[0] for question in questions] == [f"mark{n}" for n in range(40)]


async def test_a_long_history_that_a_client_brings_is_answered_at_once(tmp_path: Path) -> None:
    model = SmallModel(3000)
    history = [f"mark{number} " + "about apples " * 50 for number in range(100)]
    async with service(tmp_path, model, remembering(**DEFAULTS)) as client:
        await client.ask(*history, "and now?")
        assert model.asked_until_answer <= 16
        assert shown(model.turns[-1]).endswith("and now?")
        before = model.asked
        await client.settled()
        await client.ask(*history, "and now?", "answer", "and then?")
        assert model.asked - before <= 4


async def test_a_summary_that_is_longer_than_the_window_does_not_lock_the_session(
    tmp_path: Path,
) -> None:
    model = SmallModel(1_000_000)
    model.failures = ["long " * 5000] * 3
    async with service(tmp_path, model, remembering(**{**DEFAULTS, "threshold_tokens": 1000})) as c:
        await take_turns(c, model, 12, server=True, words=100)
        assert model.summaries
        model.window = 1500
        await take_turns(c, model, 8, server=True)


async def test_older_messages_are_left_out_where_no_summary_can_be_made(tmp_path: Path) -> None:
    model = SmallModel(3000)
    model.failures = [""] * 100
    async with service(tmp_path, model, remembering(**DEFAULTS)) as client:
        took = await take_turns(client, model, 12, server=True)
        assert LEFT_OUT in shown(model.turns[-1])
        assert max(took) <= 8, took
        assert max(took[-3:]) <= 4, took


async def test_a_question_longer_than_the_window_is_refused_and_the_session_goes_on(
    tmp_path: Path,
) -> None:
    model = SmallModel(3000)
    async with service(tmp_path, model, remembering(**DEFAULTS)) as client:
        whole = await client.ask("mark0")
        too_long = (*whole, *conversation("mark1 " + "about apples " * 1000))
        error = read_error(await client.posted(too_long), 400)
        assert error["code"] == "context_length_exceeded"
        await client.ask(*too_long, "I see.", "mark2")
        assert shown(model.turns[-1]).endswith("mark2")


async def test_a_summary_of_a_model_that_writes_on_and_on_is_bounded(tmp_path: Path) -> None:
    model = Talker()
    model.failures = ["word " * 100_000]
    async with service(tmp_path, model, remembering(**{**DEFAULTS, "threshold_tokens": 2000})) as c:
        whole: tuple[dict[str, Any], ...] = ()
        for number in range(14):
            whole = await c.ask(*whole, f"mark{number} " + "about apples " * 150)
        await c.settled()
        given = model.summaries[1].messages[1].text
        assert 0 < given.count("word ") <= 4 * SUMMARY_TOKENS / len("word ")


async def test_without_memory_a_conversation_that_is_too_long_is_refused(tmp_path: Path) -> None:
    model = SmallModel(500)
    agent = {**remembering(), "resources": []}
    async with service(tmp_path, model, agent, remembering("other")) as client:
        sent = conversation("about apples " * 100)
        error = read_error(await client.posted(sent), 400)
        assert (error["code"], model.asked) == ("context_length_exceeded", 1)
