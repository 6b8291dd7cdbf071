"""What a model gets to read of what a tool returned."""

import base64
import json
from typing import Any

import pytest
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from ai_agent_service.core.bounds import MAX_TOOL_IMAGE_BYTES
from ai_agent_service.core.errors import ToolError
from ai_agent_service.mcp.content import to_tool_output
from ai_agent_service.tools.base import ToolOutput

PNG = "iVBORw0KGgo="
SVG = "PHN2Zz48L3N2Zz4="


def text(content: str) -> TextContent:
    return TextContent(text=content)


def read(result: CallToolResult) -> ToolOutput:
    """Read a result as a server sends it."""
    return to_tool_output(result.model_dump(mode="json", by_alias=True, exclude_none=True))


def of(*blocks: Any, structured: Any = None, is_error: bool = False) -> str:
    """The text of a result with these parts."""
    return read(
        CallToolResult(content=list(blocks), structured_content=structured, is_error=is_error)
    ).content


def test_texts_are_joined() -> None:
    assert of(text("one"), text(""), text("two")) == "one\n\ntwo"
    assert of() == ""


def test_images_go_beside_the_text() -> None:
    blob = EmbeddedResource(
        resource=BlobResourceContents(uri="file:///a.png", mime_type="image/png", blob=PNG)
    )
    output = read(
        CallToolResult(content=[text("look"), ImageContent(data=PNG, mime_type="image/jpeg"), blob])
    )
    assert output.content == "look"
    assert [image.url for image in output.images] == [
        f"data:image/png;base64,{PNG}",
        f"data:image/png;base64,{PNG}",
    ]


def test_an_image_that_is_too_large_is_left_out_and_that_is_said() -> None:
    picture = b"\x89PNG\r\n\x1a\n" + bytes(MAX_TOOL_IMAGE_BYTES)
    large = ImageContent(data=base64.b64encode(picture).decode(), mime_type="image/png")
    output = read(CallToolResult(content=[large, ImageContent(data=PNG, mime_type="image/png")]))
    assert output.content == f"[an image of {len(picture)} bytes, too large to be shown]"
    assert [image.url for image in output.images] == [f"data:image/png;base64,{PNG}"]


@pytest.mark.parametrize(
    "block",
    [
        ImageContent(data=SVG, mime_type="image/svg+xml"),
        ImageContent(data="not base64!", mime_type="image/png"),
        EmbeddedResource(
            resource=BlobResourceContents(uri="file:///a.svg", mime_type="image/svg+xml", blob=SVG)
        ),
    ],
    ids=["drawing", "no image", "embedded drawing"],
)
def test_an_image_that_a_provider_would_refuse_is_named(block: Any) -> None:
    output = read(CallToolResult(content=[block]))
    assert output.images == ()
    assert "cannot be shown" in output.content


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        (
            AudioContent(data="AAAA", mime_type="audio/wav"),
            "[a sound (audio/wav, 3 bytes), which cannot be shown]",
        ),
        (ResourceLink(name="a", uri="https://x/a"), "[a](https://x/a)"),
        (
            ResourceLink(name="a", title="A", description="The first.", uri="https://x/a"),
            "[A](https://x/a): The first.",
        ),
        (
            EmbeddedResource(resource=TextResourceContents(uri="file:///a.txt", text="hi")),
            "file:///a.txt:\nhi",
        ),
        (
            EmbeddedResource(
                resource=BlobResourceContents(
                    uri="file:///a.zip", mime_type="application/zip", blob="AAAA"
                )
            ),
            "[file:///a.zip: a file (application/zip, 3 bytes), which cannot be shown]",
        ),
        (
            EmbeddedResource(resource=BlobResourceContents(uri="file:///a", blob="AAAA")),
            "[file:///a: a file (of unknown type, 3 bytes), which cannot be shown]",
        ),
    ],
    ids=["sound", "link", "link with all", "text", "file", "file of unknown type"],
)
def test_anything_else_is_named(block: Any, shown: str) -> None:
    assert of(block) == shown


@pytest.mark.parametrize(
    ("blocks", "structured"),
    [
        ([text('{"a": 1,\n "b": [2]}')], {"b": [2], "a": 1}),
        ([text("42")], {"result": 42}),
        ([text("hello")], {"result": "hello"}),
        ([text("häuser")], {"content": "häuser"}),
        ([text("one"), text("two")], {"result": ["one", "two"]}),
        ([text('{"a": 1}'), text('{"a": 2}')], {"result": [{"a": 1}, {"a": 2}]}),
        ([text("note"), text('{"a": 1}')], {"a": 1}),
    ],
)
def test_structured_content_that_the_text_says_already_is_not_said_twice(
    blocks: list[TextContent], structured: Any
) -> None:
    assert of(*blocks, structured=structured) == "\n\n".join(block.text for block in blocks)


def test_structured_content_that_says_more_is_added_as_json() -> None:
    assert of(structured={"städte": ["Köln"]}) == '{"städte": ["Köln"]}'
    assert (
        of(text("Found 1 city."), structured={"cities": ["Köln"]})
        == 'Found 1 city.\n\n{"cities": ["Köln"]}'
    )


@pytest.mark.parametrize("structured", [{"result": []}, {"cities": []}])
def test_that_there_is_nothing_is_said_too(structured: Any) -> None:
    assert of(structured=structured) == json.dumps(structured)


def test_a_name_that_is_no_wrapper_is_not_lost() -> None:
    assert of(text("3"), structured={"errors": 3}) == '3\n\n{"errors": 3}'


def test_an_error_is_told_in_the_tools_own_words() -> None:
    with pytest.raises(ToolError, match=r"^no such file$"):
        of(text("no such file"), is_error=True)
    with pytest.raises(ToolError, match="did not say why"):
        of(is_error=True)


@pytest.mark.parametrize("name", ["content", "value", "data"])
def test_a_text_under_another_name_is_read(name: str) -> None:
    assert to_tool_output({"content": [{"type": "text", name: "42"}]}).content == "42"


def test_a_result_without_content_is_given_as_json() -> None:
    assert to_tool_output({"answer": 42, "_meta": {}}).content == '{"answer": 42}'
    assert to_tool_output({"_meta": {}}).content == ""


def test_an_image_in_anthropics_form_is_shown() -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(24)).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    (image,) = to_tool_output({"content": [{"type": "image", "source": source}]}).images
    assert image.url == f"data:image/png;base64,{data}"
