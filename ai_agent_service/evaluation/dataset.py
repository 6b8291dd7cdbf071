"""Reads a dataset, which is JSON Lines with one case in each, all faults of the file at once."""

import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from jsonschema import Draft202012Validator, SchemaError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ai_agent_service.config.json_files import parse_json, read_text, suggest_name
from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.evaluation.matching import find_matcher_fault


def _to_list(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


def _validate_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"this is no regular expression ({error})") from None
    return value


def _validate_schema(value: dict[str, Any]) -> dict[str, Any]:
    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        raise ValueError(f"this is no JSON Schema ({error.message})") from None
    return value


def _validate_matchers(value: dict[str, Any]) -> dict[str, Any]:
    for name, matcher in value.items():
        if problem := find_matcher_fault(matcher):
            raise ValueError(f"{name}: {problem}")
    return value


UserInput = Annotated[str, Field(min_length=1), AfterValidator(replace_unstorable)]
Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_to_list)]


class _DatasetModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExpectedTool(_DatasetModel):
    """A call that is expected; of its arguments those that are named, each by a value or a
    matcher."""

    name: str
    arguments: Annotated[dict[str, Any], AfterValidator(_validate_matchers)] = {}


class _ScoredMetric(_DatasetModel):
    """A metric of DeepEval's, by its names there. Its score is from 0 to 1, more being better; from
    `threshold` on it is met."""

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5


GEvalParam = Literal["input", "actual_output", "expected_output", "context", "tools_called"]


class GEval(_ScoredMetric):
    """A metric in words of your own: `criteria`, from which the judge makes steps, or the
    `evaluation_steps` themselves."""

    name: Annotated[str, Field(min_length=1, max_length=60)] | None = None
    criteria: Annotated[str, Field(min_length=1)] | None = None
    evaluation_steps: Texts = ()
    expected_output: Annotated[str, Field(min_length=1)] | None = None
    context: Texts = ()
    evaluation_params: tuple[GEvalParam, ...] | None = None

    @property
    def params(self) -> tuple[GEvalParam, ...]:
        """What the judge is shown: `evaluation_params`, else question and answer and what else is
        given here."""
        if self.evaluation_params is not None:
            return self.evaluation_params
        given: dict[GEvalParam, bool] = {
            "expected_output": self.expected_output is not None,
            "context": bool(self.context),
        }
        return ("input", "actual_output", *(name for name, is_given in given.items() if is_given))

    @model_validator(mode="after")
    def _check_consistency(self) -> "GEval":
        if self.criteria is None and not self.evaluation_steps:
            raise ValueError("criteria or evaluation_steps is needed")
        if self.evaluation_params == ():
            raise ValueError(
                "evaluation_params names what the judge is shown; leave it out for what is usual"
            )
        for name, value in (("expected_output", self.expected_output), ("context", self.context)):
            if (name in self.params) != bool(value):
                raise ValueError(f"{name} is given and named in evaluation_params, or neither")
        return self


class AnswerRelevancy(_ScoredMetric):
    """How much of the answer is about the question."""


class Faithfulness(_ScoredMetric):
    """How much of the answer does not contradict `retrieval_context`, by default the results of the
    turn's tools."""

    retrieval_context: Texts = ()
    penalize_ambiguous_claims: bool = False


class Hallucination(_ScoredMetric):
    """How many of the texts of `context`, by default the results of the turn's tools, the answer
    agrees with."""

    context: Texts = ()


class TaskCompletion(_ScoredMetric):
    """How far the agent did the `task`, by default the one that the judge reads in the question."""

    task: Annotated[str, Field(min_length=1)] | None = None


class ExpectedCall(_DatasetModel):
    """A call that is expected, with exactly these `arguments` where they are named."""

    name: Annotated[str, Field(min_length=1)]
    arguments: dict[str, Any] | None = None


class ToolCorrectness(_ScoredMetric):
    """How many of `expected_tools` were called; it needs no judge."""

    expected_tools: tuple[ExpectedCall, ...]
    should_consider_ordering: bool = False
    should_exact_match: bool = False

    @model_validator(mode="after")
    def _check_consistency(self) -> "ToolCorrectness":
        if len({call.arguments is None for call in self.expected_tools}) > 1:
            raise ValueError("either all of expected_tools have arguments or none")
        if self.should_exact_match and self.should_consider_ordering:
            raise ValueError(
                "should_exact_match asks for the order too; leave should_consider_ordering out"
            )
        return self


class Expect(_DatasetModel):
    """What is expected of one answer; a field that is absent asks for nothing."""

    exact: str | None = None
    contains: Texts = ()
    not_contains: Texts = ()
    regex: Annotated[str, AfterValidator(_validate_pattern)] | None = None
    json_schema: Annotated[dict[str, Any], AfterValidator(_validate_schema)] | None = None
    tools: tuple[ExpectedTool, ...] = ()
    tools_in_order: bool = False
    forbidden_tools: Texts = ()
    max_steps: Annotated[int, Field(ge=1)] | None = None
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_cost: Annotated[float, Field(ge=0)] | None = None
    refusal: bool | None = None
    recalls: Texts = ()
    g_eval: Annotated[tuple[GEval, ...], BeforeValidator(_to_list)] = ()
    answer_relevancy: AnswerRelevancy | None = None
    faithfulness: Faithfulness | None = None
    hallucination: Hallucination | None = None
    task_completion: TaskCompletion | None = None
    tool_correctness: ToolCorrectness | None = None


class CaseTurn(_DatasetModel):
    """What the user says, and what is expected of the answer."""

    input: UserInput
    expect: Expect = Expect()


class RecordedResult(_DatasetModel):
    """What a tool once answered, for calls with these `arguments`; without them, for the next call
    of the tool."""

    name: str
    arguments: dict[str, Any] | None = None
    content: str
    is_error: bool = False


class Case(_DatasetModel):
    """One line of a dataset. `line` is its number, `written` the object that stands there.

    With `tool_results`, an empty list too, the case is a replay: no tool is run.
    """

    id: Annotated[str, Field(min_length=1, max_length=200)]
    agent: str | None = None
    input: UserInput | None = None
    turns: Annotated[tuple[CaseTurn, ...], Field(min_length=1)] | None = None
    expect: Expect | None = None
    weight: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    tags: Texts = ()
    source: str | None = None
    tool_results: tuple[RecordedResult, ...] | None = None
    line: Annotated[int, Field(exclude=True)] = 0
    written: Annotated[Mapping[str, Any], Field(exclude=True)] = {}

    @property
    def session_turns(self) -> tuple[CaseTurn, ...]:
        """What is said in the case's session, one after the other."""
        if self.turns is not None:
            return self.turns
        assert self.input is not None
        return (CaseTurn(input=self.input, expect=self.expect or Expect()),)

    @model_validator(mode="after")
    def _check_consistency(self) -> "Case":
        if (self.input is None) == (self.turns is None):
            raise ValueError("a case has either input or turns")
        if self.turns is not None and self.expect is not None:
            raise ValueError("with turns, expect stands in each of them")
        if self.session_turns[0].expect.recalls:
            raise ValueError(
                "recalls is for a turn that follows another; there is none before this one"
            )
        return self


def read_dataset(path: Path) -> list[Case]:
    """The cases of `path`; raises ConfigError with every fault in it, each with its line and its
    field."""
    text = read_text(path)
    if isinstance(text, Fault):
        raise ConfigError([text])
    cases: list[Case] = []
    faults: list[Fault] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        case, found = read_case(line, number, str(path))
        faults += found
        if case is not None:
            cases.append(case)
            if (first := lines.setdefault(case.id, number)) != number:
                faults.append(
                    Fault(
                        file=str(path),
                        where=f"line {number}",
                        field="id",
                        problem=f"the case of line {first} has this id too",
                        remedy="Rename one of them",
                    )
                )
    if not cases and not faults:
        remedy = 'Write one a line: {"id": ..., "input": ...}'
        faults.append(Fault(file=str(path), problem="there is no case in it", remedy=remedy))
    if faults:
        raise ConfigError(faults)
    return cases


def assign_agents(
    cases: list[Case], agent: str | None, known: Collection[str], file: str
) -> list[Case]:
    """`cases` with `agent` for those that name none; raises ConfigError for each that is not one of
    `known`, or is none."""
    named = [
        case if case.agent is not None else case.model_copy(update={"agent": agent})
        for case in cases
    ]
    faults = []
    for case in named:
        fault = partial(Fault, file=file, where=f"line {case.line}", field="agent")
        if case.agent is None:
            remedy = "Add it, or give --agent for all that name none"
            faults.append(fault(problem="the case names no agent", remedy=remedy))
        elif case.agent not in known:
            problem = f"{case.agent!r} is not an agent"
            faults.append(fault(problem=problem, remedy=suggest_name(case.agent, known)))
    if faults:
        raise ConfigError(faults)
    return named


def read_case(line: str, number: int, file: str) -> tuple[Case | None, list[Fault]]:
    """The case that `line` of `file` is, and what is wrong with it; the case is None when there is
    a fault."""
    value, faults = parse_json(line, file)
    place = f"line {number}"
    if faults:
        return None, [
            msgspec.structs.replace(fault, where=fault.where.replace("line 1", place) or place)
            for fault in faults
        ]
    build_fault = partial(Fault, file=file, where=place)
    if not isinstance(value, dict):
        remedy = 'Write {"id": ..., "input": ...}'
        return None, [build_fault(problem="this is not an object", remedy=remedy)]
    faults = [
        build_fault(field=name, problem="this field is not known", remedy=suggest_name(name, _CASE))
        for name in ("line", "written")
        if name in value
    ]
    rest = {name: item for name, item in value.items() if name not in ("line", "written")}
    try:
        case = Case.model_validate(rest)
    except ValidationError as error:
        parts = error.errors(include_input=False, include_url=False)
        return None, [*(_build_fault(part, file, place) for part in parts), *faults]
    if faults:
        return None, faults
    return case.model_copy(update={"line": number, "written": value}), []


_CASE = Case.model_fields.keys() - {"line", "written"}


def _build_fault(part: Any, file: str, place: str) -> Fault:
    field = ".".join(str(step) for step in part["loc"])
    if part["type"] == "extra_forbidden":
        problem = "this field is not known"
        remedy = suggest_name(str(part["loc"][-1]), _find_fields(part["loc"][:-1]))
    elif part["type"] == "missing":
        problem, remedy = "this field is missing", "Add it"
    else:
        problem = part["msg"].removeprefix("Value error, ")
        remedy = "Correct it; docs/evaluation.md describes every field"
    return Fault(file=file, where=place, field=field, problem=problem, remedy=remedy)


def _find_fields(place: tuple[str | int, ...]) -> Collection[str]:
    """The fields that there are at `place`."""
    names = [step for step in place if isinstance(step, str)]
    kinds: dict[str, type[BaseModel]] = {
        "turns": CaseTurn,
        "expect": Expect,
        "tools": ExpectedTool,
        "tool_results": RecordedResult,
        "g_eval": GEval,
        "answer_relevancy": AnswerRelevancy,
        "faithfulness": Faithfulness,
        "hallucination": Hallucination,
        "task_completion": TaskCompletion,
        "tool_correctness": ToolCorrectness,
        "expected_tools": ExpectedCall,
    }
    return kinds[names[-1]].model_fields if names and names[-1] in kinds else _CASE
