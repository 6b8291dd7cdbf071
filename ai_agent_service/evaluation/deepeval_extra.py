"""Opens the metrics of DeepEval, an extra, for a dataset that asks for them; nothing of it is
imported for others."""

import os
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.core.redaction import find_secrets, redact_secrets
from ai_agent_service.evaluation.dataset import Case
from ai_agent_service.evaluation.judge_model import Judge
from ai_agent_service.evaluation.metrics import Metric

INSTALL_COMMAND = (
    "make deepeval  (or: pip install --no-deps --require-hashes -r requirements-eval.lock)"
)

JUDGED_FIELDS = ("g_eval", "answer_relevancy", "faithfulness", "hallucination", "task_completion")
DEEPEVAL_FIELDS = (*JUDGED_FIELDS, "tool_correctness")


def has_expectation(cases: Iterable[Case], fields: Collection[str]) -> bool:
    """Whether something is expected in one of the `fields`."""
    return _find_first(cases, fields) is not None


def find_judging_faults(cases: Iterable[Case], dataset: str, judge: str | None) -> list[Fault]:
    """What is missing to judge `cases`, at the first of them that needs it: DeepEval itself, or a
    judge."""
    cases = list(cases)
    found = []
    if (place := _find_first(cases, DEEPEVAL_FIELDS)) is not None and not is_installed():
        problem = "this is measured by DeepEval, which is not installed"
        remedy = f"Install it: {INSTALL_COMMAND}"
        found.append(Fault(file=dataset, **place, problem=problem, remedy=remedy))
    if judge is None and (place := _find_first(cases, JUDGED_FIELDS)) is not None:
        problem = "this takes a judge, and none is given"
        remedy = "Give one, such as --judge openai:gpt-4.1 or --judge ollama:qwen3"
        found.append(Fault(file=dataset, **place, problem=problem, remedy=remedy))
    return found


def is_installed() -> bool:
    """Whether the extra is."""
    return find_spec("deepeval") is not None


@asynccontextmanager
async def open_judging(
    judge: Judge | None, settings: Settings, environment: Mapping[str, str], folder: Path
) -> AsyncGenerator[Metric, None]:
    """DeepEval's metrics, judged by `judge`; what DeepEval keeps while it runs goes to `folder`.
    Raises ConfigError.

    It reads the process's variables whenever it is asked for something, so that they are set for
    good here.
    """
    is_traced = _prepare(settings, environment, folder)
    try:
        # It imports the extra.
        from ai_agent_service.evaluation.deepeval_metrics import (  # noqa: PLC0415
            DeepEval,
            flush_traces,
        )

    # a variable that DeepEval reads is the likeliest reason
    except Exception as error:  # noqa: BLE001
        problem = f"DeepEval cannot be loaded ({type(error).__name__}: {error})".replace("\n", " ")
        problem = redact_secrets(problem, find_secrets(environment))
        remedy = f"Correct the variable, or {INSTALL_COMMAND}"
        raise ConfigError([Fault(file="environment", problem=problem, remedy=remedy)]) from None
    try:
        yield DeepEval(judge, is_traced=is_traced)
    finally:
        if is_traced:
            await flush_traces()


def _prepare(settings: Settings, environment: Mapping[str, str], folder: Path) -> bool:
    """Sets the variables by which DeepEval keeps to itself; gives whether traces go to Confident
    AI.

    Source: deepeval/config/settings.py, and tracing/utils.py for the one value that switches its
    tracing on.
    """
    key = settings.confident_api_key if settings.confident_tracing_enabled else None
    os.environ.pop("CONFIDENT_API_KEY", None)
    if key is not None:
        where = {
            name: environment[name]
            for name in ("CONFIDENT_BASE_URL", "CONFIDENT_REGION")
            if name in environment
        }
        os.environ.update(where, CONFIDENT_API_KEY=key.get_secret_value())
    os.environ.pop(
        "DEEPEVAL_TELEMETRY_ENABLED", None
    )  # an older name of the next one, which would count beside it
    os.environ.update(
        DEEPEVAL_TELEMETRY_OPT_OUT="NO" if settings.deepeval_telemetry_opt_out == "NO" else "YES",
        CONFIDENT_TRACING_ENABLED="NO" if key is None else "YES",
        CONFIDENT_OPEN_BROWSER="NO",
        DEEPEVAL_DISABLE_DOTENV="1",
        DEEPEVAL_DISABLE_LEGACY_KEYFILE="1",
        DEEPEVAL_UPDATE_WARNING_OPT_IN="0",
        DEEPEVAL_EVAL_MODE="llm",  # the others have a service of its makers judge
        DEEPEVAL_CACHE_FOLDER=str(folder / "deepeval"),
    )
    os.environ.setdefault("CONFIDENT_TRACE_VERBOSE", "NO")
    return key is not None


def _find_first(cases: Iterable[Case], fields: Collection[str]) -> dict[str, str] | None:
    """The line and the field, as a Fault has them, of the first expectation in one of `fields`."""
    for case in cases:
        for number, turn in enumerate(case.session_turns):
            expected = dict(turn.expect)
            for name in fields:
                if expected[name]:
                    lead = "" if case.turns is None else f"turns.{number}."
                    return {"where": f"line {case.line}", "field": f"{lead}expect.{name}"}
    return None
