"""The model behind the agents: an OpenAI-compatible server that answers by what it is asked, and
keeps what it was sent."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import msgspec
from aiohttp import web

ONE_STEP = "What is 12.5% of 1840, and what time is it in Paris?"
TWO_STEPS = "What year is it, and how many days do 7 years have?"
SLOW = "Tell me a very long story."
FAILING_TOOL = "Divide 1 by 0, please."
WAITING_TOOL = "Use the tool that takes a minute."
LOOK_UP = "What do the notes say of the moon?"
REFUSED = "Answer with status 429."
BROKEN = "Answer with status 500."
BROKEN_LATER = "Calculate, and then answer with status 500."

TITLE = "Percentages and Parisian time"
FOLLOW_UPS = ["What is 20% of 1840?", "What time is it in Tokyo?"]
TAGS = ["Mathematics", "Time"]

REASONING = "The percentage is for the calculator, the time for the clock."
ONE_STEP_ANSWER = (
    "**12.5% of 1840 is 230**, ",
    "and the clock in Paris was read just now.\n\n",
    (
        "| asked | tool |\n|---|---|\n| 12.5% of 1840 | `calculate` |\n| the time in Paris |"
        " `get_current_datetime` |\n\n"
    ),
    "Both numbers come from tools and not from memory.",
)
TWO_STEPS_ANSWER = ("Seven years have ", "2557 days, ", "counting the leap days.")
FAILING_TOOL_ANSWER = ("Nothing can be ", "divided by zero.")

STORY_PIECES = 600
"""How many pieces the long story has, one each tenth of a second."""

DEADLINE = 20.0
"""Seconds that a wait here takes at most."""


Found = TypeVar("Found")


class Call(msgspec.Struct, frozen=True):
    """A call that the model makes; its arguments are JSON."""

    name: str
    arguments: str


class Step(msgspec.Struct, frozen=True):
    """One answer of the model: what it thinks, what it says, what it calls; or an error with
    `status`."""

    text: Sequence[str] = ()
    calls: Sequence[Call] = ()
    reasoning: str = ""
    status: int = 200


STEPS: dict[str, Sequence[Step]] = {
    ONE_STEP: (
        Step(
            calls=(
                Call("calculate", '{"expression": "1840 * 12.5 / 100"}'),
                Call("get_current_datetime", '{"timezone": "Europe/Paris"}'),
            ),
            reasoning=REASONING,
        ),
        Step(ONE_STEP_ANSWER),
    ),
    TWO_STEPS: (
        Step(calls=(Call("get_current_datetime", '{"timezone": "UTC"}'),)),
        Step(calls=(Call("calculate", '{"expression": "7 * 365 + 2"}'),)),
        Step(TWO_STEPS_ANSWER),
    ),
    FAILING_TOOL: (
        Step(calls=(Call("calculate", '{"expression": "1 / 0"}'),)),
        Step(FAILING_TOOL_ANSWER),
    ),
    WAITING_TOOL: (
        Step(calls=(Call("take_a_minute", "{}"),)),
        Step(["It took a minute."]),
    ),
    LOOK_UP: (
        Step(calls=(Call("look_up", '{"subject": "the moon"}'),)),
        Step(["The moon ", "is made of rock."]),
    ),
    REFUSED: (Step(status=429),),
    BROKEN: (Step(status=500),),
    BROKEN_LATER: (
        Step(calls=(Call("calculate", '{"expression": "6 * 7"}'),)),
        Step(status=500),
    ),
}
"""What is said to each question, step by step; to others it is said what they were, in other words
each time."""


class Asked(msgspec.Struct):
    """A request to the model; `left` once the one who asked went before the end, at `ended`, a
    reading of `time.monotonic()`."""

    body: dict[str, Any]
    left: bool = False
    ended: float | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation that came."""
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    @property
    def question(self) -> str:
        """The last thing that the user said."""
        return self.said[-1]

    @property
    def is_task(self) -> bool:
        """Whether this is one of Open WebUI's background tasks."""
        return self.question.startswith("### Task:")

    @property
    def calls(self) -> list[tuple[str, str]]:
        """The calls that the conversation holds, each by its id and its name."""
        return [
            (call["id"], call["function"]["name"])
            for message in self.messages
            for call in message.get("tool_calls") or ()
        ]

    @property
    def images(self) -> list[str]:
        """The addresses of the images that the conversation holds."""
        parts = [
            part
            for message in self.messages
            if isinstance(message["content"], list)
            for part in message["content"]
        ]
        return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]

    @property
    def said(self) -> list[str]:
        """What users said in the conversation, in order."""
        return [_text(message) for message in self.messages if _is_users(message)]


def _is_users(message: dict[str, Any]) -> bool:
    """Whether a user said this; images that tools returned are told as a user's message as well."""
    return message["role"] == "user" and not _text(message).startswith("The images that the call ")


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return (
        content
        if isinstance(content, str)
        else "".join(part.get("text", "") for part in content or ())
    )


class Model:
    """The server, in a thread of its own; open within `running()`."""

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self.url = ""
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._released.set()
        self._calls = 0

    def for_question(self, question: str) -> list[Asked]:
        """The requests whose last question is `question`, oldest first."""
        return [asked for asked in self.requests if asked.question == question]

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Within this, texts stop after their first piece; at the end they go on."""
        self._released.clear()
        try:
            yield
        finally:
            self._released.set()

    def until(self, found: Callable[[], Found], what: str) -> Found:
        """What `found()` gives once that is true, asked at each change here; fails after
        DEADLINE."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(found()), DEADLINE), (
                f"the model waited in vain for {what}"
            )
            return found()

    @classmethod
    @contextmanager
    def running(cls) -> Generator[Self, None, None]:
        """A model at a free port."""
        model = cls()
        loop = asyncio.new_event_loop()
        ready, stop = threading.Event(), asyncio.Event()
        thread = threading.Thread(
            target=lambda: loop.run_until_complete(model._serve(ready, stop)), daemon=True
        )
        thread.start()
        assert ready.wait(DEADLINE), "the model did not start"
        try:
            yield model
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(DEADLINE)
            loop.close()

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(await request.json())
        self._note(lambda: self.requests.append(asked))
        step = _step(asked, len(self.requests))
        if step.status != 200:
            error = {"message": f"the model is out of order ({step.status})", "type": "test"}
            return web.json_response({"error": error}, status=step.status)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            async for chunk in self._chunks(asked, step):
                await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            asked.left = True
            raise
        finally:
            self._note(lambda: setattr(asked, "ended", time.monotonic()))
        return response

    def _note(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    async def _chunks(self, asked: Asked, step: Step) -> AsyncGenerator[dict[str, Any], None]:
        for word in step.reasoning.split(" "):
            if word:
                yield _chunk({"reasoning_content": word + " "})
        pieces = 0
        for piece in step.text:
            yield _chunk({"content": piece})
            pieces += 1
            if asked.question == SLOW:
                await asyncio.sleep(0.1)
            elif not asked.is_task:
                await asyncio.to_thread(self._released.wait, DEADLINE)
        for index, call in enumerate(step.calls):
            self._calls += 1
            function = {"name": call.name, "arguments": call.arguments}
            yield _chunk(
                {
                    "tool_calls": [
                        {
                            "index": index,
                            "id": f"call_{self._calls:04}",
                            "type": "function",
                            "function": function,
                        }
                    ]
                }
            )
        yield _chunk({}, "tool_calls" if step.calls else "stop")
        yield {
            "choices": [],
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": pieces + 1,
                "total_tokens": 101 + pieces,
            },
        }


def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted",
        "choices": [choice],
    }


def _step(asked: Asked, number: int) -> Step:
    question = asked.question
    if asked.is_task:
        return Step([_task_answer(question)])
    if question == SLOW:
        return Step([f"Line {number}. " for number in range(1, STORY_PIECES)])
    steps = STEPS.get(question)
    if steps is None:
        return Step(
            [f"Answer {number}. ", "You said: ", *(word + " " for word in question.split(" "))]
        )
    since = next(
        number for number, message in enumerate(reversed(asked.messages)) if _is_users(message)
    )
    taken = len(
        [
            message
            for message in asked.messages[len(asked.messages) - since :]
            if message["role"] == "assistant"
        ]
    )
    return steps[taken] if taken < len(steps) else Step([" And ", "there is more."])


def _task_answer(prompt: str) -> str:
    if '"follow_ups"' in prompt:
        return json.dumps({"follow_ups": FOLLOW_UPS})
    if '"tags"' in prompt:
        return json.dumps({"tags": TAGS})
    return json.dumps({"title": TITLE})
