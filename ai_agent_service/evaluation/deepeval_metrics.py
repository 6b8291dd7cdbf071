"""The metrics of DeepEval, with a model of ours as the judge. To be imported by `open_judging`
alone, which keeps DeepEval to itself."""

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from deepeval.metrics import (
    AnswerRelevancyMetric,
    BaseMetric,
    FaithfulnessMetric,
    GEval,
    HallucinationMetric,
    TaskCompletionMetric,
    ToolCorrectnessMetric,
)
from deepeval.models import DeepEvalBaseLLM
from deepeval.test_case import LLMTestCase, SingleTurnParams, ToolCall, ToolCallParams
from deepeval.tracing import a_flush_traces, observe, update_current_trace
from pydantic import BaseModel

from ai_agent_service.core.usage import Usage, sum_usage
from ai_agent_service.evaluation import dataset
from ai_agent_service.evaluation.dataset import Expect
from ai_agent_service.evaluation.judge_model import Judge, JudgementError
from ai_agent_service.evaluation.metrics import truncate_text
from ai_agent_service.evaluation.results import Check, TurnAnswer

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 10.0
"""How long the end of a run waits for the last traces to be sent to Confident AI."""

_MAX_GEVAL_SCORE = 10.0
"""What GEval's judge gives at most; all other scores are from 0 to 1."""


class DeepEval:
    """All that DeepEval measures of an answer. Where `is_traced`, each answer measured is a trace
    for Confident AI, with its scores."""

    def __init__(self, judge: Judge | None, *, is_traced: bool = False) -> None:
        self._judge = judge
        self._is_traced = is_traced

    async def evaluate(self, expect: Expect, answer: TurnAnswer) -> list[Check]:
        """See Metric."""
        measures = list(_build_measures(expect, answer))
        if not measures or not self._is_traced:
            return [await each.check(self._judge) for each in measures]

        # it has no types
        @observe(type="agent", name="evaluated answer")  # type: ignore[untyped-decorator]
        async def evaluate_traced() -> list[Check]:
            found = [await each.check(self._judge) for each in measures]
            scores = {check.metric: check.score for check in found if not check.not_judged}
            metadata = {**scores, "seconds": answer.seconds, "tokens": answer.tokens}
            update_current_trace(
                input=answer.input,
                output=answer.text,
                metadata=metadata,
                tools_called=_collect_calls(answer),
            )
            return found

        return list(await evaluate_traced())


async def flush_traces() -> None:
    """Waits until what was traced is sent, FLUSH_SECONDS at most, and tells if it is not."""
    if not await a_flush_traces(FLUSH_SECONDS):
        logger.error(
            "evaluation.traces_not_sent", extra={"reason": "Confident AI did not take them in time"}
        )


class _JudgeModel(DeepEvalBaseLLM):  # type: ignore[no-untyped-call]  # nor has this
    """The judge as DeepEval asks it for one score, which is not higher than `highest`; `items` is
    how many verdicts it owes.

    DeepEval takes an empty list for a full score, so that a judge may not give one.
    """

    def __init__(self, judge: Judge | None, highest: float, items: int | None) -> None:
        self._judge = judge
        self._highest = highest
        self._items = items
        self.usages: list[Usage | None] = []
        self.problem = ""
        super().__init__(self.get_model_name())

    def load_model(self) -> "_JudgeModel":
        """There is nothing to be loaded."""
        return self

    def get_model_name(self) -> str:
        """As results show it."""
        return self._judge.model.label if self._judge is not None else "none"

    def generate(self, prompt: str, schema: type[BaseModel]) -> str:
        """Not used: it serves metrics that are measured without an event loop."""
        raise RuntimeError("This judge is asked by a_generate.")

    # The base returns text; with a schema DeepEval takes an object.
    async def a_generate(  # type: ignore[override]
        self, prompt: str, schema: type[BaseModel]
    ) -> BaseModel:
        """What the judge says, in the form of `schema`; raises JudgementError, which stays in
        `problem`, for DeepEval may raise another."""
        try:
            if self._judge is None:
                raise JudgementError("there is no judge")
            found = await self._judge.ask(prompt, schema, self._find_fault, self.usages)
        except JudgementError as error:
            self.problem = str(error)
            raise
        for name, value in found:
            if name in ("statements", "claims"):
                self._items = len(value)
        return found

    def _find_fault(self, found: BaseModel) -> str | None:
        for name, value in found:
            if isinstance(value, list) and not value:
                return f"{name} is empty"
            if name == "verdicts" and self._items is not None and len(value) != self._items:
                return f"there are {len(value)} verdicts, and {self._items} are asked for"
            if isinstance(value, int | float) and not 0 <= value <= self._highest:
                return f"{name} is {value:g}, and not from 0 to {self._highest:g}"
        return None


class _Measure(msgspec.Struct, frozen=True):
    """One score to be found: of `case`, by the metric that `make` makes for a `model`, the judge,
    and a `threshold`.

    `missing` says why there is nothing to measure, so that the score is 0; `highest` and `items`
    are as for a judge.
    """

    name: str
    expected: str
    threshold: float
    case: LLMTestCase
    make: Callable[..., BaseMetric]
    missing: str = ""
    highest: float = 1.0
    items: int | None = None

    async def check(self, judge: Judge | None) -> Check:
        """The score; 0 where there is nothing to measure, and where the judge gave none, which then
        is told."""
        expected = f"{self.expected}, {self.threshold:g} at least"
        if self.missing:
            return Check(self.name, 0.0, expected, self.missing, threshold=self.threshold)
        asked = _JudgeModel(judge, self.highest, self.items)
        score, came, problem = 0.0, "", ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # that of 4.x on which end of a score is the good one
                metric = self.make(model=asked, threshold=self.threshold)
            score = float(await metric.a_measure(self.case, _show_indicator=False))
            came = f"{score:.2f}: {metric.reason}"
        except Exception as error:
            problem = asked.problem
            if not problem:
                logger.exception("evaluation.not_judged", extra={"metric": self.name})
                problem = f"DeepEval failed ({type(error).__name__}: {error})"
        if not problem and not 0 <= score <= 1:
            score, problem = 0.0, f"the score is {score:g}, and not from 0 to 1"
        usage = sum_usage(asked.usages) or Usage()
        return Check(
            self.name,
            score,
            expected,
            truncate_text(" ".join((came or problem).split())),
            threshold=self.threshold,
            not_judged=problem,
            tokens=usage.total_tokens,
            cost=usage.cost or 0.0,
        )


def _build_measures(expect: Expect, answer: TurnAnswer) -> Iterator[_Measure]:
    """A measure for each expectation that DeepEval is for."""
    without_text = "" if answer.text.strip() else "an answer without text"
    results = _collect_tool_results(answer)

    def find_missing(texts: tuple[str, ...]) -> str:
        return without_text or ("" if texts else "no tool told anything that could bear it out")

    for criteria in expect.g_eval:
        yield _build_g_eval(criteria, answer, without_text)
    if (relevancy := expect.answer_relevancy) is not None:
        yield _Measure(
            "answer_relevancy",
            "an answer to the question",
            relevancy.threshold,
            _build_test_case(answer),
            partial(AnswerRelevancyMetric, eval_mode="llm"),
            missing=without_text,
        )
    if (faithfulness := expect.faithfulness) is not None:
        texts = faithfulness.retrieval_context or results
        ambiguous = faithfulness.penalize_ambiguous_claims
        yield _Measure(
            "faithfulness",
            "nothing that contradicts what was found",
            faithfulness.threshold,
            _build_test_case(answer, retrieval_context=texts),
            partial(FaithfulnessMetric, eval_mode="llm", penalize_ambiguous_claims=ambiguous),
            missing=find_missing(texts),
        )
    if (hallucination := expect.hallucination) is not None:
        texts = hallucination.context or results
        yield _Measure(
            "hallucination",
            "nothing made up beside the context",
            hallucination.threshold,
            _build_test_case(answer, context=texts),
            partial(HallucinationMetric, eval_mode="llm"),
            items=len(texts),
            missing=find_missing(texts),
        )
    if (completion := expect.task_completion) is not None:
        yield _Measure(
            "task_completion",
            f"done: {completion.task}" if completion.task else "what was asked for done",
            completion.threshold,
            _build_test_case(answer, tools_called=True),
            partial(TaskCompletionMetric, eval_mode="llm", task=completion.task),
            missing=without_text,
        )
    if (correctness := expect.tool_correctness) is not None:
        yield _build_tool_correctness(correctness, answer)


def _build_g_eval(wanted: dataset.GEval, answer: TurnAnswer, without_text: str) -> _Measure:
    params = [SingleTurnParams(name) for name in wanted.params]
    case = _build_test_case(
        answer,
        expected_output=wanted.expected_output,
        context=wanted.context,
        tools_called="tools_called" in wanted.params,
    )
    return _Measure(
        f"g_eval:{wanted.name}" if wanted.name else "g_eval",
        truncate_text(wanted.criteria or " ".join(wanted.evaluation_steps)),
        wanted.threshold,
        case,
        partial(
            GEval,
            name=wanted.name or "criteria",
            criteria=wanted.criteria,
            evaluation_steps=list(wanted.evaluation_steps) or None,
            evaluation_params=params,
        ),
        highest=_MAX_GEVAL_SCORE,
        missing=without_text,
    )


def _build_tool_correctness(wanted: dataset.ToolCorrectness, answer: TurnAnswer) -> _Measure:
    with_arguments = any(call.arguments is not None for call in wanted.expected_tools)
    case = _build_test_case(answer, tools_called=True)
    case.expected_tools = [
        ToolCall(name=call.name, input_parameters=call.arguments or {})
        for call in wanted.expected_tools
    ]
    names = ", ".join(call.name for call in wanted.expected_tools) or "no tool"
    return _Measure(
        "tool_correctness",
        f"{names}{' in this order' if wanted.should_consider_ordering else ''}"
        f"{' and no other' if wanted.should_exact_match else ''}",
        wanted.threshold,
        case,
        partial(
            ToolCorrectnessMetric,
            eval_mode="llm",
            evaluation_params=[ToolCallParams.INPUT_PARAMETERS] if with_arguments else [],
            should_consider_ordering=wanted.should_consider_ordering,
            should_exact_match=wanted.should_exact_match,
        ),
    )


def _build_test_case(
    answer: TurnAnswer,
    *,
    expected_output: str | None = None,
    context: tuple[str, ...] = (),
    retrieval_context: tuple[str, ...] = (),
    tools_called: bool = False,
) -> LLMTestCase:
    return LLMTestCase(
        input=answer.input,
        actual_output=answer.text,
        expected_output=expected_output,
        context=list(context) or None,
        retrieval_context=list(retrieval_context) or None,
        tools_called=_collect_calls(answer) if tools_called else None,
    )


def _collect_calls(answer: TurnAnswer) -> list[ToolCall]:
    """The calls of the turn, each with its number: DeepEval takes two that are the same for one."""
    return [
        ToolCall(
            name=tool.name,
            input_parameters=tool.arguments or {},
            output={"call": number, "result": tool.content},
        )
        for number, tool in enumerate(answer.tools, 1)
    ]


def _collect_tool_results(answer: TurnAnswer) -> tuple[str, ...]:
    """What tools told in the turn."""
    return tuple(
        tool.content for tool in answer.tools if tool.outcome != "refused" and tool.content
    )
