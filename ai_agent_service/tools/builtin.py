"""The tools that every installation has: the time, and arithmetic."""

import ast
import difflib
import functools
import math
import operator
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal, DecimalException, localcontext
from zoneinfo import ZoneInfo, available_timezones

from ai_agent_service.core.errors import ToolFailed
from ai_agent_service.tools.function import tool

Number = int | Decimal

MAX_EXPRESSION = 1_000
MAX_BITS = 14_000
"""Of a whole number: some 4,200 digits, which Python still writes out."""

MAX_EXPONENT = 5_000


@tool
async def get_current_datetime(timezone: str = "UTC") -> dict[str, str]:
    """Get the current date and time.

    Args:
        timezone: An IANA time zone such as Europe/Paris or America/New_York.
    """
    zones = zones_by_name()
    name = zones.get(timezone.strip().replace(" ", "_").lower())
    if name is None:
        close = difflib.get_close_matches(timezone.lower(), zones, n=3)
        hint = (
            f"Did you mean {' or '.join(sorted({zones[match] for match in close}))}?" if close else "Use an IANA name such as Europe/Paris."
        )
        raise ToolFailed(f"{timezone!r} is not a known time zone. {hint}")
    now = datetime.now(ZoneInfo(name))
    return {"datetime": now.isoformat(timespec="seconds"), "weekday": now.strftime("%A"), "timezone": name}


@functools.cache
def zones_by_name() -> dict[str, str]:
    """The IANA time zones by their name in lower case, and by its last part: both `europe/paris` and `paris`."""
    names = sorted(available_timezones(), reverse=True)
    return {name.rsplit("/", 1)[-1].lower(): name for name in names} | {name.lower(): name for name in names}


@tool
async def add_two_numbers(a: float, b: float) -> float:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


@tool(timeout=5)
async def calculate(expression: str) -> str:
    """Evaluate an arithmetic expression exactly, such as (2 + 3) * 4.5 or sqrt(2) * pi.

    Knows + - * / // % ** (or ^), parentheses, the constants pi, e and tau, and abs, ceil, cos, exp, factorial, floor, gcd, ln, log, log10,
    log2, max, min, round, sin, sqrt, tan. Angles are in radians.

    Args:
        expression: The expression to evaluate.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ToolFailed(f"the expression is longer than {MAX_EXPRESSION} characters")
    source = expression.strip().replace("^", "**").replace("×", "*").replace("÷", "/").replace("−", "-")
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolFailed(f"{expression!r} is not an arithmetic expression") from None
    try:
        with localcontext(prec=34, Emax=MAX_EXPONENT, Emin=-MAX_EXPONENT):
            return _shown(_value(tree.body))
    except ZeroDivisionError:
        raise ToolFailed("this divides by zero") from None
    except DecimalException as error:
        problem = "this divides by zero" if isinstance(error, ZeroDivisionError) else "this has no result that can be written out"
        raise ToolFailed(problem) from None
    except (OverflowError, ValueError, TypeError, RecursionError) as error:
        raise ToolFailed(f"this cannot be calculated ({error})") from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=bool()):
            raise ToolFailed("only numbers can be calculated with")
        case ast.Constant(value=int(value)):
            return value
        case ast.Constant(value=float(value)):
            return _decimal(value)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(op=ast.Div(), left=left, right=right):
            return _quotient(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _small(_OPERATORS[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _small(_FUNCTIONS[name](*(_value(argument) for argument in arguments)))
    raise ToolFailed(f"{ast.unparse(node)!r} is not something to calculate with; use numbers, + - * / ** and the functions named")


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value))


def _small(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ToolFailed("the result is too large to write out")
    return value


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        if base.bit_length() * exponent > MAX_BITS:
            raise ToolFailed("the result is too large to write out")
        power: int = base**exponent
        return power
    return Decimal(base) ** Decimal(exponent)


def _quotient(dividend: Number, divisor: Number) -> Number:
    if isinstance(dividend, int) and isinstance(divisor, int) and divisor and dividend % divisor == 0:
        return dividend // divisor
    return Decimal(dividend) / Decimal(divisor)


def _floor_division(dividend: Number, divisor: Number) -> Number:
    if isinstance(dividend, int) and isinstance(divisor, int):
        return dividend // divisor
    if not divisor:
        raise ZeroDivisionError
    quotient, rest = divmod(Decimal(dividend), Decimal(divisor))  # raises when the quotient has more digits than are kept
    return quotient - 1 if rest and (rest < 0) != (divisor < 0) else quotient


def _modulo(dividend: Number, divisor: Number) -> Number:
    if isinstance(dividend, int) and isinstance(divisor, int):
        return dividend % divisor
    return dividend - divisor * _floor_division(dividend, divisor)


def _factorial(value: Number) -> Number:
    if not isinstance(value, int) or not 0 <= value <= 1_000:
        raise ToolFailed("factorial takes a whole number from 0 to 1000")
    return math.factorial(value)


def _logarithm(value: Number, base: Number | None = None) -> Number:
    return Decimal(value).ln() if base is None else Decimal(value).ln() / Decimal(base).ln()


def _round(value: Number, digits: Number = 0) -> Number:
    rounded = round(Decimal(value), int(digits))
    return int(rounded) if digits == 0 else rounded


def _by_float(function: Callable[[float], float]) -> Callable[[Number], Number]:
    def result(value: Number) -> Number:
        return _decimal(function(float(value)))

    return result


def _shown(value: Number) -> str:
    if isinstance(value, int):
        return str(value)
    if not value.is_finite():
        raise ToolFailed("this has no finite result")
    with localcontext(prec=15):
        rounded = +value
    if rounded == rounded.to_integral_value() and abs(rounded) < Decimal(10) ** 15:
        return str(int(rounded))
    return f"{rounded.normalize():f}" if -10 < rounded.adjusted() < 15 else str(rounded.normalize())


_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: _floor_division,
    ast.Mod: _modulo,
}
_CONSTANTS: dict[str, Number] = {
    "pi": Decimal("3.141592653589793238462643383279502884"),
    "e": Decimal("2.718281828459045235360287471352662498"),
    "tau": Decimal("6.283185307179586476925286766559005768"),
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": _by_float(math.cos),
    "exp": lambda value: Decimal(value).exp(),
    "factorial": _factorial,
    "floor": math.floor,
    "gcd": math.gcd,
    "ln": _logarithm,
    "log": _logarithm,
    "log10": lambda value: Decimal(value).log10(),
    "log2": lambda value: _logarithm(value, 2),
    "max": max,
    "min": min,
    "round": _round,
    "sin": _by_float(math.sin),
    "sqrt": lambda value: Decimal(value).sqrt(),
    "tan": _by_float(math.tan),
}
