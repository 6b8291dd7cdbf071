"""A run as Open WebUI shows it: OpenAI's chunks, with cards for tools, status lines, sources,
images and files between them.

What Open WebUI reads of a stream besides OpenAI's chunks, from its source (0.12,
`utils/middleware.py` and `structuredOutput.ts`): events of the Responses API
(`response.output_item.added` with an item) that become cards, and `event` objects. Here each of
them stands in a chunk without choices, so that it is still a chunk to whoever reads the stream by
OpenAI's description.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from ai_agent_service.api.openai.chat_schema import CompletionUsage, StepUsage
from ai_agent_service.api.openai.chat_stream import ChunkFrames, to_completion_usage
from ai_agent_service.core.errors import ServiceError
from ai_agent_service.core.events import (
    MemorySkipped,
    RunEvent,
    RunFinished,
    StepRecord,
    ToolFinished,
    ToolProgress,
    ToolsMissing,
    ToolStarted,
)
from ai_agent_service.core.messages import Link, ToolCall, ToolResult
from ai_agent_service.core.text import replace_unstorable

EventType = Literal["status", "source", "files"]
"""The events that are sent. Open WebUI knows one, `execute`, that runs JavaScript in the browser:
what tools say never names the type."""

LAST_OUTPUT_INDEX = 1_000_000
"""An `output_index` past every item. Open WebUI counts texts and thoughts too, and splits them by
rules of its own; where there is no item at the index, it appends."""

PROGRESS_SECONDS = 1.0
"""At least so long between two status lines of tools' progress: Open WebUI writes each of them to
its database."""

MAX_SOURCES = 10
"""Of one call."""

MAX_SOURCE_TEXT = 2000
"""Characters of a source's text."""

MAX_DEPTH = 4
"""How deep links are looked for in a result that is JSON."""

_SHOWN_TYPES = ("text/html", "image/")
"""Media types of links that are sources and not files."""

_MARKDOWN_LINK = re.compile(r"(?<!!)\[([^\[\]\n]{1,300})\]\((https?://[^\s()<>]{1,2000})\)")
_URL = re.compile(r"https?://[^\s<>\"]{1,2000}")
_URL_NAMES = ("url", "link", "href", "uri")
_TITLE_NAMES = ("title", "name")
_TEXT_NAMES = ("snippet", "description", "summary", "content", "text")
_encode = msgspec.json.Encoder().encode


class OpenWebUIFrames(ChunkFrames):
    """A run as chunks for Open WebUI; `now` gives seconds of a clock that does not go back."""

    def __init__(
        self,
        model: str,
        *,
        include_usage: bool,
        fingerprint: str | msgspec.UnsetType = msgspec.UNSET,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(model, include_usage=include_usage, fingerprint=fingerprint)
        self._envelope = self.encode_envelope()
        self._open: dict[str, ToolCall] = {}
        self._notices: list[str] = []
        self._held = b""
        """What is to be sent with the first of the rest: whoever fails before it is answered with
        an error's status still."""

        self._cited: set[str] = set()
        self._now = now
        self._told = -PROGRESS_SECONDS

    def render_event(self, event: RunEvent) -> bytes:
        """A chunk for a delta, and what Open WebUI shows of a tool."""
        frame = super().render_event(event) or self._render_tool_event(event)
        if frame and self._held:
            frame, self._held = self._held + frame, b""
        return frame

    def render_finish(self, event: RunFinished) -> bytes:
        """As it is for others, after what is held and after calls that an agent type of a plug-in
        left without a result."""
        return b"".join((self._held, *self._end_open_calls(), super().render_finish(event)))

    def render_error(self, error: ServiceError) -> bytes:
        """The error, after the calls that it broke off."""
        return b"".join((self._held, *self._end_open_calls(), super().render_error(error)))

    def _end_open_calls(self) -> list[bytes]:
        """The end of each call that has none."""
        broken = []
        # Open WebUI runs a call that has no output itself, which fails, and asks the model again.
        for call in self._open.values():
            lost = ToolResult(
                call_id=call.id,
                name=call.name,
                content="The run ended before this call did.",
                is_error=True,
            )
            broken += [
                self._encode_item(_build_call_item(call, "incomplete")),
                self._encode_item(_build_output_item(lost, "incomplete")),
            ]
        if broken:
            self._open.clear()
            broken.append(self._clear_status())
        return broken

    def build_usage(self, event: RunFinished) -> CompletionUsage | None:
        """The usage with each step's, which Open WebUI shows with it."""
        usage = super().build_usage(event)
        if usage is not None:
            usage.steps = [_build_step_usage(step) for step in event.steps]
        return usage

    def _render_tool_event(self, event: RunEvent) -> bytes:
        match event:
            case ToolStarted(call=call):
                self._open[call.id] = call
                return self._encode_item(_build_call_item(call, "completed")) + self._encode_status(
                    self._describe_open_calls()
                )
            case ToolProgress(call=call) if self._now() - self._told >= PROGRESS_SECONDS:
                self._told = self._now()
                return self._encode_status(f"{call.name}: {_format_progress(event)}")
            case ToolFinished(result=result):
                return self._render_result(result)
            case ToolsMissing(reasons=reasons):
                self._add_notice("Answering without " + " and without ".join(reasons))
            case MemorySkipped(reason=reason):
                self._add_notice(f"Answering without memory: {reason}")
            case _:
                pass
        return b""

    def _render_result(self, result: ToolResult) -> bytes:
        call = self._open.pop(result.call_id, None)
        frames = []
        if result.is_error and call is not None:
            frames.append(self._encode_item(_build_call_item(call, "failed")))
        frames.append(
            self._encode_item(
                _build_output_item(result, "failed" if result.is_error else "completed")
            )
        )
        for link in find_links(call, result):
            if link.url not in self._cited:
                self._cited.add(link.url)
                frames.append(self._render_link(link))
        images = []
        for image in result.images:
            if image.url.startswith("data:"):
                images.append({"type": "image_url", "image_url": {"url": image.url}})
            else:
                frames.append(self._render_link(Link(image.url)))
        if images:
            frames.append(self.encode_custom_chunk({"images": images}))
        frames.append(
            self._encode_status(self._describe_open_calls()) if self._open else self._clear_status()
        )
        return b"".join(frames)

    def _render_link(self, link: Link) -> bytes:
        # A browser would fetch a remote image by itself, and so report to its server who reads.
        is_file = link.media_type and not link.media_type.lower().startswith(_SHOWN_TYPES)
        if is_file and _URL.fullmatch(link.url):
            file = {
                "type": "file",
                "name": link.title or link.url,
                "url": link.url,
                "content_type": link.media_type,
            }
            return self._encode_event("files", {"files": [file]})
        name = link.title or link.url
        source = {"name": name} | ({"url": link.url} if _URL.fullmatch(link.url) else {})
        about = {"source": link.url, "name": name, "external": True}
        return self._encode_event(
            "source",
            {
                "source": source,
                "document": [link.text[:MAX_SOURCE_TEXT] or name],
                "metadata": [about],
            },
        )

    def _add_notice(self, text: str) -> None:
        self._notices.append(text)
        self._held += self._encode_status(text)

    def _describe_open_calls(self) -> str:
        return f"Using {_join_names([call.name for call in self._open.values()])}"

    def _clear_status(self) -> bytes:
        """Takes the status line away, for the cards tell the rest, or leaves what was noticed of
        the whole run."""
        text = ". ".join(self._notices)
        return self._encode_status(text or "Done", is_hidden=not text)

    def _encode_status(self, description: str, *, is_hidden: bool = False) -> bytes:
        # Each is `done`, for the person may stop the answer now: nobody would then end a line that
        # shimmers. The cards show what runs.
        return self._encode_event(
            "status",
            {"action": "tools", "description": description, "done": True, "hidden": is_hidden},
        )

    def _encode_event(self, kind: EventType, value: dict[str, object]) -> bytes:
        return b'data: %b,"event":%b}\n\n' % (
            self._envelope,
            _encode({"type": kind, "data": value}),
        )

    def _encode_item(self, item: dict[str, object]) -> bytes:
        # Only `added` finds an item again by its id, here and in the browser: `done` goes by the
        # index, which only Open WebUI knows.
        event = _encode(
            {"type": "response.output_item.added", "output_index": LAST_OUTPUT_INDEX, "item": item}
        )
        return b"data: %b,%b\n\n" % (self._envelope, event[1:])


def _build_step_usage(step: StepRecord) -> StepUsage:
    names = [call.name for call in step.tool_calls]
    if step.usage is None:
        return StepUsage(names)
    return StepUsage(
        names,
        step.usage.prompt_tokens,
        step.usage.completion_tokens,
        to_completion_usage(step.usage).cost,
    )


def find_links(call: ToolCall | None, result: ToolResult) -> list[Link]:
    """Where the result of `call` comes from: the links that the tool gave, else the address that it
    was called with, else what its result names as JSON or in Markdown; MAX_SOURCES at most."""
    if result.links:
        return list(result.links[:MAX_SOURCES])
    if result.is_error:
        return []
    if (url := _find_call_url(call)) is not None:
        return [Link(url, text=result.content[:MAX_SOURCE_TEXT])]
    found: dict[str, Link] = {}
    for link in _scan_text(result.content):
        found.setdefault(link.url, link)
        if len(found) == MAX_SOURCES:
            break
    return list(found.values())


def _find_call_url(call: ToolCall | None) -> str | None:
    arguments = _parse_json(call.arguments) if call is not None else None
    return _find_url(arguments) if isinstance(arguments, dict) else None


def _scan_text(text: str) -> Iterator[Link]:
    """The links in a result: objects that have an address where it is JSON, those of Markdown where
    it is not."""
    if "http" not in text:
        return
    value = _parse_json(text)
    if isinstance(value, dict | list):
        yield from _scan_json(value, MAX_DEPTH)
    else:
        for match in _MARKDOWN_LINK.finditer(text):
            yield Link(match.group(2), match.group(1))


def _scan_json(value: object, depth: int) -> Iterator[Link]:
    if isinstance(value, dict):
        if (url := _find_url(value)) is not None:
            yield Link(
                url, _find_first_text(value, _TITLE_NAMES), _find_first_text(value, _TEXT_NAMES)
            )
        value = list(value.values())
    if isinstance(value, list) and depth:
        for item in value:
            if isinstance(item, dict | list):
                yield from _scan_json(item, depth - 1)


def _find_url(value: dict[str, Any]) -> str | None:
    url = _find_first_text(value, _URL_NAMES)
    return url if _URL.fullmatch(url) else None


def _find_first_text(value: dict[str, Any], names: tuple[str, ...]) -> str:
    found = (text for name in names if isinstance(text := value.get(name), str) and text)
    return replace_unstorable(next(found, ""))  # `json.loads` takes lone surrogates


def _parse_json(text: str) -> object:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _build_call_item(call: ToolCall, status: str) -> dict[str, object]:
    """The card of `call`. To Open WebUI `completed` says that the arguments are complete; it shows
    the call as running until its output."""
    return {
        "type": "function_call",
        "id": call.id,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }


def _build_output_item(result: ToolResult, status: str) -> dict[str, object]:
    return {
        "type": "function_call_output",
        "id": f"fco_{result.call_id}",
        "call_id": result.call_id,
        "output": [{"type": "input_text", "text": result.content}],
        "status": status,
    }


def _format_progress(event: ToolProgress) -> str:
    done = (
        f"{event.progress / event.total:.0%}"
        if event.total
        else f"{event.progress:g}"
        if event.progress
        else ""
    )
    return ", ".join(part for part in (event.message, done) if part) or "at work"


def _join_names(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
