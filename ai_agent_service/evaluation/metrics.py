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
from ai_agent_service.evaluation.results import Check, TurnAnswer, UsedTool

MAX_TEXT_CHARACTERS = 300
_FENCE = re.compile(r"^```\w*\n(.*)\n```$", re.DOTALL)
_REFUSAL = re.compile(
    r"\b(?:I(?:'m| am)? (?:sorry|afraid)\b.{0,40}\b(?:can't|cannot|can not|unable|won't)"
    r"|I (?:can't|cannot|can not|won't|will not|must decline)|I(?:'m| am) (?:unable|not able|not"
    r" allowed))\b",
    re.IGNORECASE | re.DOTALL,
)


class Metric(Protocol):
    """Something that judges one answer by what is expected of it. A metric that nothing is expected
    of gives no checks."""

    async def evaluate(self, expect: Expect, answer: TurnAnswer) -> list[Check]:
        """One for each expectation, its `turn` left open."""
        ...


class Rule(msgspec.Struct, frozen=True):
    """A metric that needs nobody's judgement: a function of the expectation and the answer gives
    (is met, expected, came) for each."""

    name: str
    judge: Callable[[Expect, TurnAnswer], Iterable[tuple[bool, str, str]]]

    async def evaluate(self, expect: Expect, answer: TurnAnswer) -> list[Check]:
        """See Metric."""
        return [
            Check(self.name, float(met), expected, truncate_text(came))
            for met, expected, came in self.judge(expect, answer)
        ]


def truncate_text(text: str) -> str:
    """`text`, if it is not too long to be read beside others."""
    return text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]}..."


RuleOutcomes = Iterator[tuple[bool, str, str]]


def _judge_exact(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
    if expect.exact is not None:
        yield answer.text.strip() == expect.exact.strip(), repr(expect.exact), repr(answer.text)


def _judge_contains(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
    for text in expect.contains:
        yield text.casefold() in answer.text.casefold(), f"with {text!r}", repr(answer.text)


def _judge_not_contains(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
    for text in expect.not_contains:
        yield text.casefold() not in answer.text.casefold(), f"without {text!r}", repr(answer.text)


def _judge_regex(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
    if expect.regex is not None:
        yield (
            re.search(expect.regex, answer.text) is not None,
            f"matching {expect.regex!r}",
            repr(answer.text),
        )


def _judge_json_schema(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
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


def _judge_tools(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
    used = "no tool" if not answer.tools else ", ".join(map(_describe_call, answer.tools))
    left = list(answer.tools)
    for wanted in expect.tools:
        found = next((tool for tool in left if _is_call(wanted, tool)), None)
        if found is not None:
            left.remove(found)
        yield (
            found is not None,
            (
                f"{wanted.name} with {_format_arguments(wanted.arguments)}"
                if wanted.arguments
                else wanted.name
            ),
            used,
        )
    if expect.tools_in_order and len(expect.tools) > 1:
        rest = iter(answer.tools)
        in_order = all(any(_is_call(wanted, tool) for tool in rest) for wanted in expect.tools)
        yield in_order, f"in order: {', '.join(wanted.name for wanted in expect.tools)}", used


def _judge_forbidden_tools(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
    for name in expect.forbidden_tools:
        came = [_describe_call(tool) for tool in answer.tools if tool.name == name]
        yield not came, f"no {name}", ", ".join(came) or "none"


def _build_limit_rule(
    name: str,
    unit: str,
    limit: Callable[[Expect], float | None],
    took: Callable[[TurnAnswer], float | None],
) -> Rule:
    def judge(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
        most, came = limit(expect), took(answer)
        if most is not None:
            is_met = came is not None and came <= most
            yield (
                is_met,
                f"{most:g} {unit} at most",
                "not told by the provider" if came is None else f"{came:.6g} {unit}",
            )

    return Rule(name, judge)


def _judge_refusal(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
    if expect.refusal is not None:
        refused = answer.refused or _REFUSAL.search(answer.text) is not None
        yield (
            refused == expect.refusal,
            "a refusal" if expect.refusal else "no refusal",
            repr(answer.text),
        )


def _judge_recalls(expect: Expect, answer: TurnAnswer) -> RuleOutcomes:
    for text in expect.recalls:
        yield text.casefold() in answer.text.casefold(), f"{text!r} remembered", repr(answer.text)


METRICS: tuple[Metric, ...] = (
    Rule("exact", _judge_exact),
    Rule("contains", _judge_contains),
    Rule("not_contains", _judge_not_contains),
    Rule("regex", _judge_regex),
    Rule("json_schema", _judge_json_schema),
    Rule("tools", _judge_tools),
    Rule("forbidden_tools", _judge_forbidden_tools),
    _build_limit_rule(
        "max_steps", "steps", lambda expect: expect.max_steps, lambda answer: answer.steps
    ),
    _build_limit_rule(
        "max_seconds", "seconds", lambda expect: expect.max_seconds, lambda answer: answer.seconds
    ),
    _build_limit_rule(
        "max_tokens", "tokens", lambda expect: expect.max_tokens, lambda answer: answer.tokens
    ),
    _build_limit_rule(
        "max_cost", "dollars", lambda expect: expect.max_cost, lambda answer: answer.cost
    ),
    Rule("refusal", _judge_refusal),
    Rule("recalls", _judge_recalls),
)


def _is_call(wanted: ExpectedTool, tool: UsedTool) -> bool:
    given = tool.arguments or {}
    return tool.name == wanted.name and all(
        name in given and matches(matcher, given[name])
        for name, matcher in wanted.arguments.items()
    )


def _describe_call(tool: UsedTool) -> str:
    return f"{tool.name} with {_format_arguments(tool.arguments or {})}"


def _format_arguments(arguments: dict[str, object]) -> str:
    return msgspec.json.encode(arguments).decode()
