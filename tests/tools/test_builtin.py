"""The built-in tools."""

import json
import time
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError
from ai_agent_service.tools.builtin import add_two_numbers, calculate, get_current_datetime

CONTEXT = RunContext(run_id="run_1", agent_id="a", deadline=time.monotonic() + 60)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4.5", "22.5"),
        ("0.1 + 0.2", "0.3"),
        ("10 / 4", "2.5"),
        ("10 / 5", "2"),
        ("1 / 3", "0.333333333333333"),
        ("7 // 2", "3"),
        ("-7 % 3", "2"),
        ("7.5 % 2", "1.5"),
        ("-7.5 % 2", "0.5"),
        ("-7.5 // 2", "-4"),
        ("2 ** 10", "1024"),
        ("2^-1", "0.5"),
        ("2 ** 200", str(2**200)),
        ("123456789 * 987654321", "121932631112635269"),
        ("6 × 7 ÷ 2 − 1", "20"),
        ("sqrt(16) + abs(-2)", "6"),
        ("log(8, 2)", "3"),
        ("log10(1000)", "3"),
        ("ln(e)", "1"),
        ("round(2.567, 2)", "2.57"),
        ("round(2.5)", "2"),
        ("ceil(1.2) + floor(1.8)", "3"),
        ("max(1, 2.5, 2)", "2.5"),
        ("gcd(12, 18)", "6"),
        ("factorial(20)", "2432902008176640000"),
        ("cos(0)", "1"),
        ("+5", "5"),
        ("1e-12", "1E-12"),
    ],
)
async def test_arithmetic_is_exact(expression: str, result: str) -> None:
    assert await calculate(expression) == result


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("1 / 0", "divides by zero"),
        ("1.5 % 0", "divides by zero"),
        ("9 ** 9 ** 9", "too large"),
        ("9 ** 9999 * 9 ** 9999", "too large"),
        ("factorial(100000)", "from 0 to 1000"),
        ("sqrt(-1)", "no result"),
        ("1e400 - 1e400", "no result"),
        ("(10.0^999999) % 3", "no result"),
        ("floor(10.0**999999)", "no result"),
        ("round(1, 10.0**999999)", "no result"),
        ("1e40 % 7", "no result"),
        ("2**9999 * 2**9999", "too large"),
        ("(1", "not an arithmetic expression"),
        ("", "not an arithmetic expression"),
        ("1" * 1001, "longer than"),
        ("max()", "cannot be calculated"),
        ("True", "only numbers"),
        ("'a' * 9", "not something to calculate with"),
        ("__import__('os').system('true')", "not something to calculate with"),
        ("(1).__class__", "not something to calculate with"),
        ("[x for x in (1, 2)]", "not something to calculate with"),
        ("open", "not something to calculate with"),
        ("sqrt(x=1)", "not something to calculate with"),
    ],
)
async def test_what_cannot_be_calculated_is_told(expression: str, told: str) -> None:
    with pytest.raises(ToolError, match=told):
        await calculate(expression)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789.+-*/^%(), esqrtlogmaxpi", max_size=40))
async def test_whatever_is_written_ends_soon_in_a_number_or_an_explanation(expression: str) -> None:
    started = time.monotonic()
    try:
        result = await calculate(expression)
    except ToolError as error:
        result = str(error)
    assert isinstance(result, str)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("asked", "zone"),
    [
        ("UTC", "UTC"),
        ("Europe/Paris", "Europe/Paris"),
        ("europe/paris", "Europe/Paris"),
        ("Tokyo", "Asia/Tokyo"),
        ("new york", "America/New_York"),
    ],
)
async def test_the_time_is_told_for_a_zone_or_a_city(asked: str, zone: str) -> None:
    told = json.loads((await get_current_datetime.run({"timezone": asked}, CONTEXT)).content)
    when = datetime.fromisoformat(told["datetime"])
    assert abs(when.timestamp() - time.time()) < 5
    assert (told["timezone"], told["weekday"]) == (zone, when.strftime("%A"))


async def test_the_time_without_a_zone_is_utc() -> None:
    assert json.loads((await get_current_datetime.run({}, CONTEXT)).content)["timezone"] == "UTC"


async def test_an_unknown_zone_is_told_with_what_may_be_meant() -> None:
    with pytest.raises(ToolError, match="Europe/Paris"):
        await get_current_datetime("Europe/Pariss")
    with pytest.raises(ToolError, match="IANA name"):
        await get_current_datetime("qqqqqqqq")


async def test_two_numbers_are_added() -> None:
    assert (await add_two_numbers.run({"a": 1, "b": 2.5}, CONTEXT)).content == "3.5"
