"""Define the built-in tools: the time, and arithmetic."""

import ast
import difflib
import functools
import math
import operator
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal, DecimalException, localcontext
from zoneinfo import ZoneInfo, available_timezones

from ai_agent_service.core.errors import ToolError
from ai_agent_service.tools.function import tool

Number = int | Decimal

MAX_EXPRESSION = 1_000
MAX_BITS = 14_000
"""Of a whole number: about 4,200 digits, fewer than Python refuses to write."""

MAX_EXPONENT = 5_000
_SIGNS = str.maketrans("×÷−", "*/-")


@tool
async def get_current_datetime(timezone: str = "UTC") -> dict[str, str]:
    """Get the current date and time.

    Args:
        timezone: An IANA time zone such as Europe/Paris or America/New_York.
    """
    zones = load_zones()
    name = zones.get(timezone.strip().replace(" ", "_").lower())
    if name is None:
        close = difflib.get_close_matches(timezone.lower(), zones, n=3)
        hint = (
            f"Did you mean {' or '.join(sorted({zones[match] for match in close}))}?"
            if close
            else "Use an IANA name such as Europe/Paris."
        )
        raise ToolError(f"{timezone!r} is not a known time zone. {hint}")
    now = datetime.now(ZoneInfo(name))
    return {
        "datetime": now.isoformat(timespec="seconds"),
        "weekday": now.strftime("%A"),
        "timezone": name,
    }


@functools.cache
def load_zones() -> dict[str, str]:
    """Return the IANA time zones by their name in lower case and by its last part, such as
    `europe/paris` and `paris`."""
    names = sorted(available_timezones(), reverse=True)
    return {name.rsplit("/", 1)[-1].lower(): name for name in names} | {
        name.lower(): name for name in names
    }


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

    Knows + - * / // % ** (or ^), parentheses, the constants pi, e and tau, and abs, ceil, cos, exp,
    factorial, floor, gcd, ln, log, log10, log2, max, min, round, sin, sqrt, tan. Angles are in
    radians.

    Args:
        expression: The expression to evaluate.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ToolError(f"the expression is longer than {MAX_EXPRESSION} characters")
    source = expression.strip().replace("^", "**").translate(_SIGNS)
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(f"{expression!r} is not an arithmetic expression") from None
    try:
        with localcontext(prec=34, Emax=MAX_EXPONENT, Emin=-MAX_EXPONENT):
            return _format_number(_evaluate(tree.body))
    except ZeroDivisionError:
        raise ToolError("this divides by zero") from None
    except DecimalException:
        raise ToolError("this has no result that can be written out") from None
    except (OverflowError, ValueError, TypeError, RecursionError) as error:
        raise ToolError(f"this cannot be calculated ({error})") from None


def _evaluate(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=bool()):
            raise ToolError("only numbers can be calculated with")
        case ast.Constant(value=int(value)):
            return value
        case ast.Constant(value=float(value)):
            return _to_decimal(value)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand)
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            return _compute_power(_evaluate(left), _evaluate(right))
        case ast.BinOp(op=ast.Div(), left=left, right=right):
            return _divide(_evaluate(left), _evaluate(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _check_size(_OPERATORS[type(op)](_evaluate(left), _evaluate(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _check_size(_FUNCTIONS[name](*(_evaluate(argument) for argument in arguments)))
    raise ToolError(
        f"{ast.unparse(node)!r} is not something to calculate with; use numbers, + - * / ** and the"
        " functions named"
    )


def _to_decimal(value: float) -> Decimal:
    return Decimal(repr(value))


def _check_size(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ToolError("the result is too large to write out")
    return value


def _compute_power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        if base.bit_length() * exponent > MAX_BITS:
            raise ToolError("the result is too large to write out")
        power: int = base**exponent
        return power
    return Decimal(base) ** Decimal(exponent)


def _divide(dividend: Number, divisor: Number) -> Number:
    are_whole = isinstance(dividend, int) and isinstance(divisor, int)
    if are_whole and divisor and dividend % divisor == 0:
        return dividend // divisor
    return Decimal(dividend) / Decimal(divisor)


def _floor_divide(dividend: Number, divisor: Number) -> Number:
    if isinstance(dividend, int) and isinstance(divisor, int):
        return dividend // divisor
    if not divisor:
        raise ZeroDivisionError
    # It raises if the quotient has more digits than are kept.
    quotient, rest = divmod(Decimal(dividend), Decimal(divisor))
    return quotient - 1 if rest and (rest < 0) != (divisor < 0) else quotient


def _compute_modulo(dividend: Number, divisor: Number) -> Number:
    if isinstance(dividend, int) and isinstance(divisor, int):
        return dividend % divisor
    return dividend - divisor * _floor_divide(dividend, divisor)


def _compute_factorial(value: Number) -> Number:
    if not isinstance(value, int) or not 0 <= value <= 1_000:
        raise ToolError("factorial takes a whole number from 0 to 1000")
    return math.factorial(value)


def _compute_logarithm(value: Number, base: Number | None = None) -> Number:
    return Decimal(value).ln() if base is None else Decimal(value).ln() / Decimal(base).ln()


def _round(value: Number, digits: Number = 0) -> Number:
    rounded = round(Decimal(value), int(digits))
    return int(rounded) if digits == 0 else rounded


def _wrap_float_function(function: Callable[[float], float]) -> Callable[[Number], Number]:
    def compute(value: Number) -> Number:
        return _to_decimal(function(float(value)))

    return compute


def _format_number(value: Number) -> str:
    if isinstance(value, int):
        return str(value)
    if not value.is_finite():
        raise ToolError("this has no finite result")
    with localcontext(prec=15):
        rounded = +value
    if rounded == rounded.to_integral_value() and abs(rounded) < Decimal(10) ** 15:
        return str(int(rounded))
    return f"{rounded.normalize():f}" if -10 < rounded.adjusted() < 15 else str(rounded.normalize())


_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: _floor_divide,
    ast.Mod: _compute_modulo,
}
_CONSTANTS: dict[str, Number] = {
    "pi": Decimal("3.141592653589793238462643383279502884"),
    "e": Decimal("2.718281828459045235360287471352662498"),
    "tau": Decimal("6.283185307179586476925286766559005768"),
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": _wrap_float_function(math.cos),
    "exp": lambda value: Decimal(value).exp(),
    "factorial": _compute_factorial,
    "floor": math.floor,
    "gcd": math.gcd,
    "ln": _compute_logarithm,
    "log": _compute_logarithm,
    "log10": lambda value: Decimal(value).log10(),
    "log2": lambda value: _compute_logarithm(value, 2),
    "max": max,
    "min": min,
    "round": _round,
    "sin": _wrap_float_function(math.sin),
    "sqrt": lambda value: Decimal(value).sqrt(),
    "tan": _wrap_float_function(math.tan),
}
