"""What may be expected of an answer, and how it is found out whether that was met."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import msgspec
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from ai_agent_service.evaluation.dataset import Expect, ExpectedTool
from ai_agent_service.evaluation.matching import matches
from ai_agent_service.evaluation.results import Answered, Check, UsedTool

MAX_SHOWN = 300
_FENCE = re.compile(r"^```\w*\n(.*)\n```$", re.DOTALL)
_REFUSAL = re.compile(
    r"\b(?:I(?:'m| am)? (?:sorry|afraid)\b.{0,40}\b(?:can't|cannot|can not|unable|won't)"
    r"|I (?:can't|cannot|can not|won't|will not|must decline)|I(?:'m| am) (?:unable|not able|not allowed))\b",
    re.IGNORECASE | re.DOTALL,
)


class Metric(Protocol):
    """Something that judges one answer by what is expected of it. A metric that nothing is expected of gives no checks."""

    @property
    def name(self) -> str: ...

    async def checks(self, expect: Expect, answer: Answered) -> list[Check]:
        """One for each expectation, its `turn` left open."""
        ...


class Rule(msgspec.Struct, frozen=True):
    """A metric that needs nobody's judgement: a function of the expectation and the answer gives (is met, expected, came) for each."""

    name: str
    judge: Callable[[Expect, Answered], Iterable[tuple[bool, str, str]]]

    async def checks(self, expect: Expect, answer: Answered) -> list[Check]:
        """See Metric."""
        return [Check(self.name, float(met), expected, shown(came)) for met, expected, came in self.judge(expect, answer)]


def shown(text: str) -> str:
    """`text`, if it is not too long to be read beside others."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


Judged = Iterator[tuple[bool, str, str]]


def _exact(expect: Expect, answer: Answered) -> Judged:
    if expect.exact is not None:
        yield answer.text.strip() == expect.exact.strip(), repr(expect.exact), repr(answer.text)


def _contains(expect: Expect, answer: Answered) -> Judged:
    for text in expect.contains:
        yield text.casefold() in answer.text.casefold(), f"with {text!r}", repr(answer.text)


def _not_contains(expect: Expect, answer: Answered) -> Judged:
    for text in expect.not_contains:
        yield text.casefold() not in answer.text.casefold(), f"without {text!r}", repr(answer.text)


def _regex(expect: Expect, answer: Answered) -> Judged:
    if expect.regex is not None:
        yield re.search(expect.regex, answer.text) is not None, f"matching {expect.regex!r}", repr(answer.text)


def _json_schema(expect: Expect, answer: Answered) -> Judged:
    if expect.json_schema is None:
        return
    text = answer.text.strip()
    fenced = _FENCE.match(text)
    try:
        value = msgspec.json.decode(fenced.group(1) if fenced else text)
        Draft202012Validator(expect.json_schema, registry=Registry()).validate(value)
    except (msgspec.DecodeError, RecursionError):
        yield False, "JSON", repr(answer.text)
    except ValidationError as error:
        yield False, "JSON by the schema", f"{error.json_path}: {error.message}"
    except Unresolvable as error:
        yield False, "JSON by the schema", f"the schema refers to what is not in it: {error.ref}"
    else:
        yield True, "JSON by the schema", repr(answer.text)


def _tools(expect: Expect, answer: Answered) -> Judged:
    used = "no tool" if not answer.tools else ", ".join(map(_call, answer.tools))
    left = list(answer.tools)
    for wanted in expect.tools:
        found = next((tool for tool in left if _is_call(wanted, tool)), None)
        if found is not None:
            left.remove(found)
        yield found is not None, f"{wanted.name} with {_arguments(wanted.arguments)}" if wanted.arguments else wanted.name, used
    if expect.tools_in_order and len(expect.tools) > 1:
        rest = iter(answer.tools)
        in_order = all(any(_is_call(wanted, tool) for tool in rest) for wanted in expect.tools)
        yield in_order, f"in order: {', '.join(wanted.name for wanted in expect.tools)}", used


def _forbidden_tools(expect: Expect, answer: Answered) -> Judged:
    for name in expect.forbidden_tools:
        came = [_call(tool) for tool in answer.tools if tool.name == name]
        yield not came, f"no {name}", ", ".join(came) or "none"


def _limits(name: str, unit: str, limit: Callable[[Expect], float | None], took: Callable[[Answered], float | None]) -> Rule:
    def judge(expect: Expect, answer: Answered) -> Judged:
        most, came = limit(expect), took(answer)
        if most is not None:
            is_met = came is not None and came <= most
            yield is_met, f"{most:g} {unit} at most", "not told by the provider" if came is None else f"{came:.6g} {unit}"

    return Rule(name, judge)


def _refusal(expect: Expect, answer: Answered) -> Judged:
    if expect.refusal is not None:
        refused = answer.refused or _REFUSAL.search(answer.text) is not None
        yield refused == expect.refusal, "a refusal" if expect.refusal else "no refusal", repr(answer.text)


def _recalls(expect: Expect, answer: Answered) -> Judged:
    for text in expect.recalls:
        yield text.casefold() in answer.text.casefold(), f"{text!r} remembered", repr(answer.text)


METRICS: tuple[Metric, ...] = (
    Rule("exact", _exact),
    Rule("contains", _contains),
    Rule("not_contains", _not_contains),
    Rule("regex", _regex),
    Rule("json_schema", _json_schema),
    Rule("tools", _tools),
    Rule("forbidden_tools", _forbidden_tools),
    _limits("max_steps", "steps", lambda expect: expect.max_steps, lambda answer: answer.steps),
    _limits("max_seconds", "seconds", lambda expect: expect.max_seconds, lambda answer: answer.seconds),
    _limits("max_tokens", "tokens", lambda expect: expect.max_tokens, lambda answer: answer.tokens),
    _limits("max_cost", "dollars", lambda expect: expect.max_cost, lambda answer: answer.cost),
    Rule("refusal", _refusal),
    Rule("recalls", _recalls),
)


def _is_call(wanted: ExpectedTool, tool: UsedTool) -> bool:
    given = tool.arguments or {}
    return tool.name == wanted.name and all(name in given and matches(matcher, given[name]) for name, matcher in wanted.arguments.items())


def _call(tool: UsedTool) -> str:
    return f"{tool.name} with {_arguments(tool.arguments or {})}"


def _arguments(arguments: dict[str, object]) -> str:
    return msgspec.json.encode(arguments).decode()
