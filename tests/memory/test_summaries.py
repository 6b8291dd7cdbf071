"""The compressor: when a conversation is too long, and what the model is asked that summarises
it."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from ai_agent_service.core.errors import (
    ContextTooLongError,
    ProviderProtocolError,
    ProviderUnavailableError,
)
from ai_agent_service.core.events import ReasoningDelta, TextDelta
from ai_agent_service.core.messages import Content, ImagePart, Message, Role, TextPart, ToolCall
from ai_agent_service.memory.summaries import (
    DEFAULT_PROMPT,
    MIN_PIECE_TOKENS,
    Compressor,
    _estimate_upper_bound,
    _render_message,
)
from ai_agent_service.memory.tokens import TokenCounter, estimate
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from tests.support.fake_provider import Action, Script, says

SHORT = (
    Message(role="user", content="My name is Ada."),
    Message(role="assistant", content="Hello Ada."),
)
WORDS = [f"word{number}" for number in range(3000)]


class Narrow(Script):
    """Summarises what has at most `characters`; finds the rest too long."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters = characters
        self.taken: list[str] = []
        """What was summarised, piece by piece."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """`summary 1`, `summary 2` and so on."""
        self.requests.append(request)
        asked = request.messages[-1].text
        if len(asked) > self.characters:
            raise ContextTooLongError("This does not fit.", param="messages")
        self.taken.append(asked)
        yield TextDelta(f"summary {len(self.taken)}")
        yield ModelFinished("stop")


def compressor(
    provider: Script,
    *,
    threshold: int = 1000,
    prompt: str = "",
    model_name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    recent: int = 2,
) -> Compressor:
    async def model() -> str:
        return model_name or "default-model"

    return Compressor(
        provider,
        model,
        TokenCounter(),
        model_name=model_name,
        threshold_tokens=threshold,
        recent_messages=recent,
        timeout=20,
        prompt=prompt,
        settings=settings,
    )


async def asked(*messages: Message, earlier: str | None = None, **fields: Any) -> ModelRequest:
    """What a model is asked that is to summarise `messages`."""
    script = Script(says("a summary"))
    async with asyncio.timeout(20):
        assert await compressor(script, **fields).summarize(earlier, messages) == "a summary"
    [request] = script.requests
    return request


def words_in(text: str) -> list[str]:
    return re.findall(r"word\d+", text)


# Whether it is due


@pytest.mark.parametrize(("words", "due"), [(300, False), (1500, True)])
async def test_a_conversation_is_due_when_it_is_more_than_the_threshold(
    words: int, due: bool
) -> None:
    message = Message(role="user", content="apple " * words)
    assert await compressor(Script()).is_due([message], "") is due


async def test_the_summary_that_is_sent_counts_too() -> None:
    message = Message(role="user", content="apple " * 600)
    assert not await compressor(Script()).is_due([message], "")
    assert await compressor(Script()).is_due([message], "apple " * 600)


async def test_calls_and_results_of_tools_count_too() -> None:
    call = Message(
        role="assistant", tool_calls=(ToolCall("c", "look", '{"for": "' + "apple " * 600 + '"}'),)
    )
    result = Message(role="tool", content="apple " * 600, tool_call_id="c")
    assert await compressor(Script()).is_due([call, result], "")
    assert not await compressor(Script()).is_due([call], "")


async def test_many_short_messages_cost_more_than_their_words() -> None:
    messages = [Message(role="user", content="ok")] * 300
    assert await compressor(Script()).is_due(messages, "")
    assert not await compressor(Script()).is_due([Message(role="user", content="ok " * 300)], "")


# What is asked


async def test_the_model_is_given_the_conversation_with_who_said_what() -> None:
    request = await asked(*SHORT, settings={"temperature": 0.1})
    assert [message.role for message in request.messages] == ["system", "user"]
    assert request.messages[0].text == DEFAULT_PROMPT
    assert "User: My name is Ada.\n\nAssistant: Hello Ada." in request.messages[1].text
    assert (request.model, request.tools, request.settings) == (
        "default-model",
        (),
        {"temperature": 0.1},
    )
    assert 0 < request.deadline - time.monotonic() <= 20


async def test_an_earlier_summary_comes_before_what_is_new() -> None:
    text = (await asked(*SHORT, earlier="She likes cats.")).messages[1].text
    assert text.index("She likes cats.") < text.index("My name is Ada.")


async def test_a_prompt_and_a_model_of_ones_own_are_used() -> None:
    request = await asked(*SHORT, prompt="Shorten this.", model_name="small")
    assert (request.messages[0].text, request.model) == ("Shorten this.", "small")


async def test_calls_and_results_of_tools_are_summarised_and_long_results_by_both_their_ends() -> (
    None
):
    call = Message(
        role="assistant",
        content="Let me look.",
        tool_calls=(ToolCall("c", "look", '{"in": "attic"}'),),
    )
    result = Message(role="tool", content="BEGIN" + "x" * 50_000 + "END", tool_call_id="c")
    text = (await asked(call, result, threshold=8000)).messages[1].text
    assert "Assistant: Let me look." in text
    assert 'look with {"in": "attic"}' in text
    assert re.search(r"BEGINx+ \[\.\.\.\] x+END", text)
    assert len(text) < 6000


async def test_images_are_mentioned_and_not_sent() -> None:
    image = Message(
        role="user",
        content=(TextPart("What is this?"), ImagePart("data:image/png;base64,iVBORw0KGgo=")),
    )
    request = await asked(image)
    assert "User: What is this?\nUser also sent images or files." in request.messages[1].text
    assert isinstance(request.messages[1].content, str)
    assert "iVBORw0KGgo" not in request.messages[1].content


# What comes of it


@pytest.mark.parametrize(
    "answer", [says(), says(" \n"), [ReasoningDelta("Hm"), ModelFinished("stop")]]
)
async def test_an_empty_summary_is_an_error(answer: list[Action]) -> None:
    with pytest.raises(ProviderProtocolError, match="empty summary"):
        await compressor(Script(answer)).summarize(None, SHORT)


@pytest.mark.parametrize("end", [[], [ModelFinished("content_filter")]])
async def test_a_summary_that_broke_off_is_an_error(end: list[Action]) -> None:
    with pytest.raises(ProviderProtocolError):
        await compressor(Script([TextDelta("The user is called"), *end])).summarize(None, SHORT)


async def test_an_error_of_the_provider_is_passed_on() -> None:
    script = Script([TextDelta("The us"), ProviderUnavailableError("It is down.")])
    with pytest.raises(ProviderUnavailableError):
        await compressor(script).summarize(None, SHORT)
    assert (len(script.requests), script.closed) == (1, 1)


async def test_a_model_that_repeats_without_end_does_not_make_the_conversation_longer() -> None:
    found = await compressor(Script(says("x" * 100_000)), threshold=500).summarize(None, SHORT)
    assert len(found) == 1000


async def test_text_over_the_threshold_is_summarised_in_pieces_each_with_the_summary_so_far() -> (
    None
):
    provider = Narrow(1_000_000)
    messages = [
        Message(role="user", content=" ".join(WORDS[start : start + 100]))
        for start in range(0, 3000, 100)
    ]
    found = await compressor(provider, threshold=1000).summarize("summary 0", messages)
    assert found == f"summary {len(provider.taken)}"
    assert len(provider.taken) > 3
    assert [word for piece in provider.taken for word in words_in(piece)] == WORDS
    assert all(f"summary {number}\n" in piece for number, piece in enumerate(provider.taken))


async def test_one_message_that_is_too_long_is_summarised_in_pieces_too() -> None:
    provider = Narrow(1_000_000)
    await compressor(provider, threshold=1000).summarize(
        None, [Message(role="user", content=" ".join(WORDS))]
    )
    assert len(provider.taken) > 3
    assert (
        "".join(piece.rpartition("The conversation:\n\n")[2] for piece in provider.taken)
        == f"User: {' '.join(WORDS)}"
    )


async def test_pieces_get_smaller_where_the_model_finds_them_too_long_and_nothing_is_left_out() -> (
    None
):
    provider = Narrow(3000)
    messages = [
        Message(role="user", content=" ".join(WORDS[start : start + 100]))
        for start in range(0, 3000, 100)
    ]
    async with asyncio.timeout(20):
        found = await compressor(provider, threshold=8000).summarize(None, messages)
    assert found == f"summary {len(provider.taken)}"
    assert [word for piece in provider.taken for word in words_in(piece)] == WORDS
    assert 0 < len(provider.requests) - len(provider.taken) < 6


async def test_a_model_that_takes_no_piece_at_all_is_given_up_after_a_few_attempts() -> None:
    provider = Narrow(0)
    with pytest.raises(ContextTooLongError):
        await compressor(provider, threshold=8000).summarize(
            None, [Message(role="user", content=" ".join(WORDS))]
        )
    sizes = [len(request.messages[1].text) for request in provider.requests]
    assert sizes == sorted(set(sizes), reverse=True)
    assert (len(sizes) <= 8, sizes[-1] <= 4 * MIN_PIECE_TOKENS + 100) == (True, True)


@pytest.mark.parametrize("other", [{"prompt": "Shorten this."}, {"model_name": "small"}])
def test_a_summary_depends_on_its_prompt_and_its_model(other: dict[str, str]) -> None:
    changed = compressor(Script(), **other)  # type: ignore[arg-type]
    assert compressor(Script()).identity != changed.identity


def test_a_summary_depends_on_its_provider() -> None:
    other = Script()
    other.name = "other"
    assert compressor(Script()).identity != compressor(other).identity


def test_a_summary_does_not_depend_on_when_it_is_made() -> None:
    assert compressor(Script(), threshold=500, recent=3).identity == compressor(Script()).identity


@pytest.mark.parametrize("role", ["user", "assistant", "tool", "system"])
def test_no_transcript_is_longer_than_what_is_estimated_without_one(role: Role) -> None:
    texts = ["", "A", "Some words.", "ÄÖÜ ЖЖ 漢字" * 20, "x" * 9000, "{}[]" * 50]
    call = ToolCall("call_1", "A_TOOL-NAME", '{"A": "B"}')
    image = (TextPart("See."), ImagePart("data:image/png;base64,AAAA"))
    contents: list[Content] = [*texts, image]
    for content in contents:
        for calls in ((), (call,), (call, call)) if role == "assistant" else ((),):
            message = Message(role, content, calls)
            transcript = _render_message(message)
            assert estimate(transcript) <= _estimate_upper_bound([message], ""), transcript[:100]
