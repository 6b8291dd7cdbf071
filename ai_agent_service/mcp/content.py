"""Convert the result of an MCP tool to what a model can read."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ai_agent_service.core.bounds import MAX_TOOL_IMAGE_BYTES
from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ImagePart, Link
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.mcp.images import build_image_url, decode_base64, find_image_type
from ai_agent_service.mcp.lenient import NOT_AN_OBJECT
from ai_agent_service.tools.base import ToolOutput

_WRAPPERS = frozenset({"result", "content"})
_ABOUT = frozenset({"_meta", "isError", "resultType"})
"""Members of a result that are not what the tool returned."""

_Block = Mapping[str, Any]


class _Part(msgspec.Struct, frozen=True):
    """What one block of content is to a model, and to a user."""

    text: str = ""
    image: ImagePart | None = None
    link: Link | None = None


def to_tool_output(result: Mapping[str, Any]) -> ToolOutput:
    """Return the text and the images of `result`, a result as the server sent it; raises ToolError
    with its text if it is an error.

    Structured content is added as JSON unless the text contains it. A block that a model cannot
    read is described in a line, a resource by its address.
    """
    blocks = _list_blocks(result)
    parts = [_read_block(block) for block in blocks]
    texts = [part.text for part in parts if part.image is None]
    structured = result.get("structuredContent")
    if structured is not None and not _is_in_text(structured, texts, blocks):
        texts.append(_dump(structured))
    content = "\n\n".join(text for text in texts if text)
    if result.get("isError") in (True, "true", "True"):
        raise ToolError(content or "the tool failed and did not say why")
    return ToolOutput(
        content,
        tuple(part.image for part in parts if part.image is not None),
        tuple(part.link for part in parts if part.link is not None),
    )


def _list_blocks(result: Mapping[str, Any]) -> list[object]:
    content = result.get(NOT_AN_OBJECT, result.get("content"))
    if isinstance(content, list):
        return content
    if content is not None:
        return [content]
    if "content" in result or "structuredContent" in result:
        return []
    other = {name: value for name, value in result.items() if name not in _ABOUT}
    return [_dump(other)] if other else []


def _read_block(block: object) -> _Part:
    if isinstance(block, str):
        return _Part(block)
    if not isinstance(block, dict):
        return _Part(_dump(block))
    kind = block.get("type")
    if isinstance(kind, str) and (read := _KINDS.get(kind)) is not None:
        return read(block)
    if isinstance(text := block.get("text"), str):
        return _Part(text)
    named = kind if isinstance(kind, str) and kind else "a part of unknown type"
    return _Part(f"[{named}, which cannot be shown]")


def _read_text(block: _Block) -> _Part:
    texts = (block.get(name) for name in ("text", "content", "value", "data"))
    text = next((each for each in texts if each is not None), None)
    if text is None:
        return _Part("[a text without content]")
    return _Part(text if isinstance(text, str) else _dump(text))


def _read_image(block: _Block) -> _Part:
    source = block.get("source")
    source = source if isinstance(source, dict) else {}  # Anthropic's form
    kind = _get_text(block, "mimeType") or _get_text(source, "media_type")
    data = _get_text(block, "data") or _get_text(source, "data")
    return _show_image(data) or _Part(
        f"[an image ({kind or 'of unknown type'}, {_describe_size(data)}), which cannot be shown]"
    )


def _read_audio(block: _Block) -> _Part:
    kind, size = _get_text(block, "mimeType"), _describe_size(_get_text(block, "data"))
    return _Part(f"[a sound ({kind or 'of unknown type'}, {size}), which cannot be shown]")


def _read_link(block: _Block) -> _Part:
    uri, description = _get_text(block, "uri"), _get_text(block, "description")
    title = _get_text(block, "title") or _get_text(block, "name") or uri
    if not uri:
        return _Part(f"[{title or 'a link without an address'}]")
    words = f"[{title}]({uri})" + (f": {description}" if description else "")
    kind = _get_text(block, "mimeType")
    link = Link(*map(replace_unstorable, (uri, title, description, kind)))
    return _Part(words, link=link)


def _read_resource(block: _Block) -> _Part:
    resource = block.get("resource")
    resource = resource if isinstance(resource, dict) else block
    uri = _get_text(resource, "uri")
    if isinstance(text := resource.get("text"), str):
        link = Link(replace_unstorable(uri), text=replace_unstorable(text)) if uri else None
        return _Part(f"{uri}:\n{text}" if uri else text, link=link)
    blob = _get_text(resource, "blob")
    kind = _get_text(resource, "mimeType")
    return (_show_image(blob) if blob else None) or _Part(
        f"[{uri or 'a resource'}: a file ({kind or 'of unknown type'}, {_describe_size(blob)}),"
        " which cannot be shown]"
    )


_KINDS: Mapping[str, Callable[[_Block], _Part]] = {
    "text": _read_text,
    "image": _read_image,
    "audio": _read_audio,
    "resource_link": _read_link,
    "resource": _read_resource,
}


def _show_image(data: str) -> _Part | None:
    """Return an image that a model can be shown, or a note if it is too large; None for anything
    else."""
    decoded = decode_base64(data)
    if decoded is None or (kind := find_image_type(decoded)) is None:
        return None
    if len(data) > MAX_TOOL_IMAGE_BYTES:
        return _Part(f"[an image of {len(decoded)} bytes, too large to be shown]")
    return _Part(image=ImagePart(build_image_url(decoded, kind)))


def _get_text(block: _Block, name: str) -> str:
    value = block.get(name)
    return value if isinstance(value, str) else ""


def _describe_size(data: str) -> str:
    decoded = decode_base64(data)
    return "not base64" if decoded is None else f"{len(decoded)} bytes"


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_in_text(structured: Any, texts: list[str], blocks: list[object]) -> bool:
    """Return whether the text contains `structured` too, as servers send it for other hosts.

    Servers wrap a value that is not an object in one, as `result` or `content`, and send a list as
    one text for each entry, or as one text with a line for each.
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
    lines = [text.splitlines() for text in texts]
    return any(
        _is_same(candidate, said)
        for candidate in whole
        for said in (*values, *texts, *lines, values, texts, blocks)
    )


def _is_same(one: object, other: object) -> bool:
    """Return whether both are the same JSON; in Python, 1 equals True."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _parse_json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
