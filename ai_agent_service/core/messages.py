"""Messages, their parts and tool calls, as the loop and every provider see them."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]

ToolOutcome = Literal["success", "error", "timeout", "refused"]
"""What a tool call came to; `refused` are calls of tools that are not there, and repeated ones that
were not carried out."""

UNKNOWN_RESULT = "No result of this call is known; it may or may not have been carried out."
"""The result that a model is shown of a call that was in progress when its run ended."""


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of text within a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="image"):
    """An image: `url` is an http(s) address or a `data:` URL; `detail` is OpenAI's `auto | low |
    high`."""

    url: str
    detail: str | None = None


class AudioPart(msgspec.Struct, frozen=True, tag_field="type", tag="audio"):
    """A sound: base64 `data` in `format` (`wav`, `mp3`)."""

    data: str
    format: str


class FilePart(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="file"):
    """A file, by the provider's `file_id` or as a `data:` URL in `file_data`."""

    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


ContentPart = TextPart | ImagePart | AudioPart | FilePart
Content = str | tuple[ContentPart, ...]


class ProviderData(msgspec.Struct, frozen=True):
    """What a provider sent with a call and needs back unchanged, such as a signature or the
    reasoning before it.

    `data` is JSON text that only the wire format of `provider` reads. It is stored with the call
    and never shown to clients.
    """

    provider: str
    model: str
    data: str


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call that the model asked for; `arguments` is the JSON text exactly as the model wrote
    it.

    `provider_data` of a step's first call also holds what belongs to the whole step.
    """

    id: str
    name: str
    arguments: str
    provider_data: ProviderData | None = None


class Link(msgspec.Struct, frozen=True):
    """Something that a tool's result comes from or points to: `url`, and what is known of it, each
    of which may be empty: its title, `text` of it, and its `media_type` if it is a file."""

    url: str
    title: str = ""
    text: str = ""
    media_type: str = ""


class ToolResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one call came to: `content` for the model, `images` beside it, `links` for the person
    who asked, `seconds` of wall time.

    `outcome` is what metrics tell of it.
    """

    call_id: str
    name: str
    content: str
    images: tuple[ImagePart, ...] = ()
    links: tuple[Link, ...] = ()
    is_error: bool = False
    seconds: float = 0.0
    outcome: ToolOutcome = "success"


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation.

    `tool_calls` stand only on an assistant message, `tool_call_id` only on a tool message. `images`
    of a tool message are what the tool returned beside its text; a wire puts them where its
    provider takes them.
    """

    role: Role
    content: Content = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    images: tuple[ImagePart, ...] = ()

    @property
    def text(self) -> str:
        """The text of the message, its text parts joined by newlines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as a model is told of it; `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: dict[str, object]
    strict: bool | None = None


class NamedTool(msgspec.Struct, frozen=True):
    """A tool choice that names the one tool to call."""

    name: str


def restore_provider_data(message: Message, known: Iterable[ToolCall]) -> Message:
    """Return `message` with the provider data of those of its calls that are `known` by id, which
    a client that repeats a conversation leaves out."""
    data = {call.id: call.provider_data for call in known if call.provider_data is not None}
    if not any(call.id in data for call in message.tool_calls):
        return message
    calls = tuple(
        msgspec.structs.replace(call, provider_data=data.get(call.id, call.provider_data))
        for call in message.tool_calls
    )
    return msgspec.structs.replace(message, tool_calls=calls)


ToolChoice = Literal["auto", "none", "required"] | NamedTool


def build_tool_message(result: ToolResult) -> Message:
    """`result` as the message that tells the model of it."""
    return Message(
        role="tool", content=result.content, tool_call_id=result.call_id, images=result.images
    )
