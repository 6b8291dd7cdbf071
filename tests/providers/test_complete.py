"""A streamed answer is collected into one value."""

import asyncio
import time

import pytest

from ai_agent_service.core.errors import ProviderUnavailableError, RunTimeoutError
from ai_agent_service.core.events import ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.messages import Message
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers import complete as module
from ai_agent_service.providers.base import ModelFinished, ModelRequest
from ai_agent_service.providers.complete import Completion, complete
from tests.support.fake_provider import Action, Script


def request(seconds: float = 10) -> ModelRequest:
    messages = (Message(role="user", content="Hm?"),)
    return ModelRequest(model="m", messages=messages, deadline=time.monotonic() + seconds)


async def test_text_refusal_and_finish_are_collected_separately() -> None:
    finish = ModelFinished("length", (), Usage(3, 2))
    script = Script(
        [TextDelta("a"), ReasoningDelta("why"), TextDelta("b"), RefusalDelta("no"), finish]
    )
    answer = await complete(script, request())
    assert answer == Completion("ab", "no", finish)
    assert answer.usage == Usage(3, 2)
    assert (await complete(Script([TextDelta("a")]), request())).usage is None


async def test_an_answer_over_the_limit_is_not_read_further() -> None:
    script = Script([TextDelta("aa"), TextDelta("bb"), TextDelta("cc"), ModelFinished("stop")])
    assert await complete(script, request(), max_characters=3) == Completion("aabb")
    assert script.closed == 1


@pytest.mark.parametrize("action", [asyncio.Event(), TimeoutError("a plug-in's")])
async def test_a_provider_that_ignores_its_deadline_is_stopped(
    action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)
    script = Script([action])
    with pytest.raises(RunTimeoutError, match="scripted did not end its answer in time"):
        await complete(script, request(0.05))
    assert script.closed == 1


async def test_an_error_of_the_provider_is_raised() -> None:
    with pytest.raises(ProviderUnavailableError):
        await complete(Script([TextDelta("a"), ProviderUnavailableError("away")]), request())
