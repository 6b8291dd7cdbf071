"""Convert the result of an MCP tool to what a model can read."""

import json
import re
from typing import Any

import msgspec
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ImagePart, Link
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.tools.base import ToolOutput

MAX_IMAGE_BYTES = 20 * 1024 * 1024
"""Of one image, in base64; a larger one is replaced by a note."""

_SUPPORTED_IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""The types that providers accept; for another one they refuse the whole request."""

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_WRAPPERS = frozenset({"result", "content"})


def to_tool_output(result: CallToolResult) -> ToolOutput:
    """Return the text and the images of `result`; raises ToolError with its text if it is an error.

    Structured content is added as JSON unless the text contains it. Content that a model cannot
    read is described by its type and size, a resource by its address.
    """
    texts: list[str] = []
    images: list[ImagePart] = []
    for block in result.content:
        if (image := _to_image(block)) is not None:
            if len(image.url) <= MAX_IMAGE_BYTES:
                images.append(image)
            else:
                texts.append(f"[an image of {len(image.url)} bytes, too large to be shown]")
        else:
            texts.append(_to_text(block))
    structured: Any = result.structured_content
    if structured is not None and not _is_in_text(structured, texts, result.content):
        texts.append(json.dumps(structured, ensure_ascii=False))
    content = "\n\n".join(text for text in texts if text)
    if result.is_error:
        raise ToolError(content or "the tool failed and did not say why")
    links = tuple(link for block in result.content if (link := _to_link(block)) is not None)
    return ToolOutput(content, tuple(images), links)


def _to_image(block: ContentBlock) -> ImagePart | None:
    match block:
        case ImageContent(data=data, mime_type=mime_type):
            pass
        case EmbeddedResource(resource=BlobResourceContents(blob=data, mime_type=str(mime_type))):
            pass
        case _:
            return None
    return (
        ImagePart(f"data:{mime_type};base64,{data}")
        if mime_type in _SUPPORTED_IMAGES and _BASE64.fullmatch(data)
        else None
    )


def _to_link(block: ContentBlock) -> Link | None:
    match block:
        case ResourceLink(
            uri=uri, name=name, title=title, description=description, mime_type=mime_type
        ):
            return Link(
                str(uri),
                replace_unstorable(title or name),
                replace_unstorable(description or ""),
                mime_type or "",
            )
        case EmbeddedResource(resource=TextResourceContents(uri=uri, text=text)):
            return Link(str(uri), text=replace_unstorable(text))
        case _:
            return None


def _to_text(block: ContentBlock) -> str:
    match block:
        case TextContent(text=text):
            return text
        case ImageContent(data=data, mime_type=mime_type):
            return f"[an image ({mime_type}, {_count_bytes(data)} bytes), which cannot be shown]"
        case AudioContent(data=data, mime_type=mime_type):
            return f"[a sound ({mime_type}, {_count_bytes(data)} bytes), which cannot be shown]"
        case ResourceLink(uri=uri, name=name, title=title, description=description):
            return f"[{title or name}]({uri})" + (f": {description}" if description else "")
        case EmbeddedResource(resource=TextResourceContents(uri=uri, text=text)):
            return f"{uri}:\n{text}"
        case EmbeddedResource(
            resource=BlobResourceContents(uri=uri, mime_type=mime_type, blob=blob)
        ):
            return (
                f"[{uri}: a file ({mime_type or 'of unknown type'}, {_count_bytes(blob)} bytes),"
                " which cannot be shown]"
            )
        case _:
            return f"[{block.type}, which cannot be shown]"


def _count_bytes(base64: str) -> int:
    return len(base64) * 3 // 4 - base64.count("=")


def _is_in_text(structured: Any, texts: list[str], blocks: list[ContentBlock]) -> bool:
    """Return whether the text contains `structured` too, as servers send it for other hosts.

    Servers wrap a value that is not an object in one, as `result` or `content`, and send a list as
    one text for each entry.
    """
    if not blocks:
        return False
    whole = [structured]
    if (
        isinstance(structured, dict)
        and len(structured) == 1
        and (name := next(iter(structured))) in _WRAPPERS
    ):
        whole.append(structured[name])
    values = [_parse_json(text) for text in texts]
    dumped = [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in blocks]
    return any(
        _is_same(candidate, said)
        for candidate in whole
        for said in (*values, *texts, values, texts, dumped)
    )


def _is_same(one: object, other: object) -> bool:
    """Return whether both are the same JSON; in Python, 1 equals True."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _parse_json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
