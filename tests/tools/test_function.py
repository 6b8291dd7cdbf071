"""@tool: what becomes of a function."""

import threading
import time
from typing import Annotated, Literal

import pytest
from inline_snapshot import snapshot
from pydantic import BaseModel, Field

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ImagePart
from ai_agent_service.tools.base import Tool, ToolOutput
from ai_agent_service.tools.function import tool

CONTEXT = RunContext(run_id="run_1", agent_id="a", deadline=time.monotonic() + 60, user="ada")


class Place(BaseModel):
    city: str
    country: str = "FR"


@tool
async def weather(
    place: Place,
    days: Annotated[int, Field(ge=1, le=7)] = 1,
    unit: Literal["C", "F"] = "C",
    *,
    context: RunContext,
) -> str:
    """Tell the weather.

    Knows the next week.

    Args:
        place: Where.
        days: How many days.
    """
    return f"{place.city}/{place.country} {days} {unit} for {context.user}"


def test_the_schema_comes_from_the_signature_and_the_docstring() -> None:
    assert weather.spec.name == "weather"
    assert weather.spec.description == "Tell the weather.\n\nKnows the next week."
    assert weather.spec.parameters == snapshot(
        {
            "$defs": {
                "Place": {
                    "properties": {
                        "city": {"type": "string"},
                        "country": {"default": "FR", "type": "string"},
                    },
                    "required": ["city"],
                    "type": "object",
                }
            },
            "additionalProperties": False,
            "properties": {
                "place": {"$ref": "#/$defs/Place", "description": "Where."},
                "days": {
                    "default": 1,
                    "description": "How many days.",
                    "maximum": 7,
                    "minimum": 1,
                    "type": "integer",
                },
                "unit": {"default": "C", "enum": ["C", "F"], "type": "string"},
            },
            "required": ["place"],
            "type": "object",
        }
    )


def test_a_decorated_function_is_a_tool_and_still_a_function() -> None:
    @tool(name="other_name", timeout=3, parallel=False, max_output=10)
    def double(number: int) -> int:
        return number * 2

    assert isinstance(double, Tool)
    assert (double.spec.name, double.timeout, double.parallel, double.max_output) == (
        "other_name",
        3,
        False,
        10,
    )
    assert double(4) == 8


async def test_arguments_become_what_the_signature_says_and_the_context_is_injected() -> None:
    output = await weather.run({"place": {"city": "Paris"}, "days": 2}, CONTEXT)
    assert output.content == "Paris/FR 2 C for ada"


async def test_arguments_that_do_not_fit_are_told_with_the_place_and_the_schema() -> None:
    with pytest.raises(ToolError) as caught:
        await weather.run({"place": {}, "days": 9, "context": {}}, CONTEXT)
    told = str(caught.value)
    assert "place.city: Field required" in told
    assert "days: Input should be less than or equal to 7" in told
    assert "context: Extra inputs are not permitted" in told
    assert '"city"' in told


async def test_a_property_named_title_is_kept() -> None:
    @tool
    async def book(title: str) -> str:
        return title

    assert book.spec.parameters["properties"] == {"title": {"type": "string"}}


async def test_a_function_that_is_not_async_runs_in_a_thread() -> None:
    @tool
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert (await where.run({}, CONTEXT)).content == "false"


async def test_what_a_function_returns_reaches_the_model_as_text() -> None:
    image = ImagePart("data:image/png;base64,AA==")
    returned: list[object] = [
        "text",
        {"a": [1, 2.5, None]},
        None,
        Place(city="Rome"),
        ToolOutput("seen", (image,)),
    ]

    @tool
    async def give(number: int) -> object:
        return returned[number]

    outputs = [await give.run({"number": number}, CONTEXT) for number in range(len(returned))]
    assert [output.content for output in outputs] == [
        "text",
        '{"a":[1,2.5,null]}',
        "null",
        '{"city":"Rome","country":"FR"}',
        "seen",
    ]
    assert outputs[-1].images == (image,)


async def test_a_parameter_without_an_annotation_is_text() -> None:
    async def echo(text):  # type: ignore[no-untyped-def]  # a plug-in's author may leave it out
        return text

    assert (await tool(echo).run({"text": "x"}, CONTEXT)).content == "x"


def test_what_a_model_cannot_fill_is_refused_at_once() -> None:
    async def anything(*values: int) -> int:
        return sum(values)

    with pytest.raises(TypeError, match="only parameters that have a name"):
        tool(anything)
    with pytest.raises(ValueError, match="letters, digits"):
        tool(name="no spaces")(weather.function)


async def test_parameters_may_have_names_that_a_model_would_not_bear() -> None:
    @tool
    async def odd(
        schema: str, _x: int, model_config: str, copy: bool, context: RunContext | None = None
    ) -> str:
        assert context is not None
        return f"{schema} {_x} {model_config} {copy} {context.user}"

    properties = odd.spec.parameters["properties"]
    assert isinstance(properties, dict)
    assert list(properties) == ["schema", "_x", "model_config", "copy"]
    assert (
        await odd.run({"schema": "s", "_x": 1, "model_config": "m", "copy": True}, CONTEXT)
    ).content == "s 1 m True ada"


async def test_text_within_json_that_cannot_be_stored_is_kept_for_replacement() -> None:
    @tool
    async def listing() -> list[str]:
        return ["a\udcff"]

    assert (await listing.run({}, CONTEXT)).content == '["a\udcff"]'
