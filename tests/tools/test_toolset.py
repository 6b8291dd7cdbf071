"""Where a call is carried out: what becomes of its arguments."""

import time
from decimal import Decimal

import pytest

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.tools.function import tool
from ai_agent_service.tools.toolset import Toolset, parse_arguments

CONTEXT = RunContext(run_id="run_1", agent_id="a", deadline=time.monotonic() + 60)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1.5", 1.5),
        ("0.1", 0.1),
        ("1e3", 1000.0),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("0.12345678901234567890123", Decimal("0.12345678901234567890123")),
    ],
)
def test_a_number_keeps_its_digits(text: str, value: object) -> None:
    found = parse_arguments(f'{{"number": {text}}}')["number"]
    assert (found, type(found)) == (value, type(value))


async def test_a_number_becomes_what_the_parameter_says() -> None:
    @tool
    async def both(exact: Decimal, rounded: float) -> str:
        return f"{exact} {rounded}"

    call = ToolCall(
        "1", "both", '{"exact": 0.12345678901234567890123, "rounded": 0.12345678901234567890123}'
    )
    result = await Toolset([both], default_timeout=5).execute(call, CONTEXT)
    assert result.content == "0.12345678901234567890123 0.12345678901234568"


async def test_words_of_a_failure_are_cut_as_results_are() -> None:
    @tool(max_output=100)
    async def fails() -> str:
        raise ToolError("x" * 1000)

    result = await Toolset([fails], default_timeout=5).execute(
        ToolCall("c", "fails", "{}"), CONTEXT
    )
    assert result.is_error
    assert result.content.endswith("[cut here: 100 of 1007 bytes are shown]")
