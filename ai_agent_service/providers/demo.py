"""Answer without a model: offline, deterministic, and saying so."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from typing import ClassVar, Self

import msgspec

from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.messages import Message, ToolCall
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest, ProviderSetup

CLOCK, CALCULATOR = "get_current_datetime", "calculate"
HELP = (
    "I am the **demo** provider: no language model is connected, I only follow a few fixed rules so"
    " that you can see this service work.\n\nTry:\n- `What time is it in Tokyo?` (calls a tool)\n-"
    " `What is (17 + 4) * 2?` (calls a tool)\n- `My name is Ada.` and then `What is my name?` (uses"
    " the conversation)\n\nTo get real answers, set one of these in `.env` and start again:"
    " `OPENAI_API_KEY` with `OPENAI_DEFAULT_MODEL`, `OPENROUTER_API_KEY`, `AZURE_OPENAI_API_KEY`"
    " with `AZURE_OPENAI_ENDPOINT` and `AZURE_OPENAI_DEFAULT_MODEL`, or run Ollama on this machine."
)
MAX_SEARCH_CHARACTERS = 1_000
"""Characters of a message in which arithmetic is searched, in quadratic time."""

_TIME = re.compile(r"\b(?:time|date|day)\b", re.IGNORECASE)
_PLACE = re.compile(r"\b(?:in|at|for)\s+([A-Z][\w'-]*(?:[ /_][A-Z][\w'-]*)*)")
_SUM = re.compile(r"(?:(?:sqrt|log|sin|cos|tan|abs|round)\s*\(|[-(\d.])[\d\s.+*/^×÷%()a-z-]*[\d)]")
_OPERATION = re.compile(
    r"[\d)]\s*(?:[-+*/^×÷%]|\*\*)\s*[-(\d]|(?:sqrt|log|sin|cos|tan|abs|round)\s*\("
)
_NAME_GIVEN = re.compile(r"\b(?:my name is|i am called|call me)\s+([\w'-]+)", re.IGNORECASE)
_NAME_QUESTION = re.compile(r"\bwhat(?:'s| is) my name\b|\bwho am i\b", re.IGNORECASE)
_GREETING = re.compile(r"^\s*(?:hi|hello|hey|good (?:morning|evening|day))\b", re.IGNORECASE)
_PIECE = re.compile(r"\S+\s*|\s+")


class _Sum(msgspec.Struct):
    expression: str


class _Now(msgspec.Struct):
    timezone: str
    datetime: str
    weekday: str


class Demo:
    """Answers questions about the time in a place, arithmetic and the user's name; explains
    otherwise how to connect a real model.

    `pause` is the time in seconds between two words, so that streaming can be seen.
    """

    name: ClassVar[str] = "demo"
    missing: tuple[str, ...] = ()
    model_list: tuple[str, ...] = ()

    def __init__(self, *, pause: float = 0.01) -> None:
        self._pause = pause

    @classmethod
    def from_setup(cls, setup: ProviderSetup) -> Self:
        """Return a demo, which needs no settings."""
        return cls()

    async def default_model(self) -> str:
        """Return `demo`."""
        return "demo"

    async def ping(self, *, timeout: float) -> None:
        """Return at once."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield the answer word by word; its usage counts words instead of tokens."""
        read = sum(len(message.text.split()) for message in request.messages)
        call = self._tool_call(request)
        if call is not None:
            yield ModelFinished("tool_calls", (call,), Usage(read, 1))
            return
        written = 0
        for piece in _split_pieces(self._build_answer(request.messages)):
            written += 1
            yield TextDelta(piece)
            await asyncio.sleep(self._pause)
        yield ModelFinished("stop", (), Usage(read, written))

    def _tool_call(self, request: ModelRequest) -> ToolCall | None:
        last = request.messages[-1]
        offered = {spec.name for spec in request.tools}
        if last.role != "user" or request.tool_choice == "none":
            return None
        call_id = f"call_demo_{len(request.messages)}"
        if CALCULATOR in offered and (expression := _find_expression(last.text)):
            return ToolCall(
                call_id, CALCULATOR, msgspec.json.encode({"expression": expression}).decode()
            )
        if CLOCK in offered and _TIME.search(last.text):
            place = _PLACE.search(last.text)
            return ToolCall(
                call_id,
                CLOCK,
                msgspec.json.encode({"timezone": place.group(1) if place else "UTC"}).decode(),
            )
        return None

    def _build_answer(self, messages: tuple[Message, ...]) -> str:
        last = messages[-1]
        if last.role == "tool":
            return _describe_result(last, messages)
        if _NAME_QUESTION.search(last.text):
            names = [
                name
                for message in messages
                if message.role == "user"
                for name in _NAME_GIVEN.findall(message.text)
            ]
            return (
                f"Your name is {names[-1]}."
                if names
                else "You have not told me your name in this conversation."
            )
        if found := _NAME_GIVEN.search(last.text):
            return f"Nice to meet you, {found.group(1)}. Ask me for your name later on."
        if _GREETING.search(last.text):
            return f"Hello! {HELP}"
        return HELP


def _find_expression(text: str) -> str | None:
    """Return the arithmetic in `text`; None without an operation."""
    for match in _SUM.finditer(text[:MAX_SEARCH_CHARACTERS].replace("?", " ").replace("=", " ")):
        expression = match.group(0).strip()
        if _OPERATION.search(expression):
            return expression
    return None


def _describe_result(result: Message, messages: tuple[Message, ...]) -> str:
    call = next(
        (
            call
            for message in reversed(messages)
            for call in message.tool_calls
            if call.id == result.tool_call_id
        ),
        None,
    )
    if result.text.startswith("Error: "):
        return f"The tool could not do that: {result.text.removeprefix('Error: ')}"
    try:
        if call is not None and call.name == CALCULATOR:
            return (
                f"{msgspec.json.decode(call.arguments, type=_Sum).expression} = **{result.text}**"
            )
        if call is not None and call.name == CLOCK:
            now = msgspec.json.decode(result.text, type=_Now)
            return (
                f"In {now.timezone} it is **{now.datetime[11:16]}** on {now.weekday},"
                f" {now.datetime[:10]}."
            )
    except (msgspec.DecodeError, RecursionError):
        pass  # a client may send a call and a result of its own
    return f"The tool answered: {result.text}"


def _split_pieces(text: str) -> Iterator[str]:
    return (match.group(0) for match in _PIECE.finditer(text))
