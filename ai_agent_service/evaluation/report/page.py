"""A run as one page of HTML that needs no network and no script: scores, distributions,
differences, and what was asked and answered."""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ai_agent_service.core.redaction import redact_secrets
from ai_agent_service.evaluation.report.charts import (
    Histogram,
    Scale,
    bin_scores,
    bin_values,
    clamp,
    select_marks,
)
from ai_agent_service.evaluation.results import (
    Check,
    Result,
    Summary,
    describe_failures,
    group_by_case,
)
from ai_agent_service.evaluation.run_folder import EvaluationRun
from ai_agent_service.evaluation.runner import summarize_results
from ai_agent_service.evaluation.scoring import (
    MIN_CASES,
    Change,
    Comparison,
    compute_confidence,
    score_cases,
)

MAX_TEXT = 4_000
"""Characters of one text: a message, an answer, the arguments or the result of a call."""

MAX_DETAILS = 2_000_000
"""Characters of all texts together; the cases that went worst come first."""

MAX_ROWS = 5_000
MAX_CHANGES = 300
MAX_ATTEMPTS = 10
"""Attempts at a case that are shown with what was said: those that went worst."""

MAX_UNFOLDED = 20
"""Cases that met everything; more of them are folded up, if there are others."""

MAX_CALLS = 50
MAX_REASON = 160
_OVERHEAD = 400
"""Characters that an answer takes besides its texts."""

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action"
    " 'none'"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_CONTROL_PICTURES = {0x7F: "\u2421", **{code: chr(0x2400 + code) for code in range(32)}}
_STATES = ("broken", "not judged", "not met", "met")
_EXPLANATIONS = {
    "better": "All of that is above 0: this run is better.",
    "worse": "All of that is below 0: this run is worse.",
    "within noise": "0 is in it: that may be chance.",
}


class Baseline(msgspec.Struct, frozen=True):
    """An earlier run, and how the one that is reported differs from it."""

    run: EvaluationRun
    comparison: Comparison


class _CaseReport(msgspec.Struct, frozen=True):
    """All attempts at a case; `number` is its place in the dataset, `written` the case there."""

    number: int
    name: str
    attempts: Sequence[Result]
    written: Mapping[str, object]

    @property
    def scores(self) -> list[float]:
        """Of the attempts, in their order."""
        return [attempt.score for attempt in self.attempts]

    @property
    def score(self) -> float:
        """The mean of the attempts."""
        return statistics.fmean(self.scores)

    @property
    def marks(self) -> list[float]:
        """The marks of attempts on the bar of the score; none where all have one score."""
        scores = self.scores
        return select_marks(round(score, 2) for score in scores) if len(set(scores)) > 1 else []

    @property
    def state(self) -> str:
        """The worst that came of an attempt: one of _STATES."""
        return _find_state(self.attempts)

    @property
    def reason(self) -> str:
        """What broke it, was not judged or not met, on one line."""
        return describe_failures(self.attempts)

    @property
    def worst_attempts(self) -> list[Result]:
        """The attempts, the worst first."""
        return sorted(
            self.attempts, key=lambda each: (each.error is None, each.score, each.attempt)
        )

    @property
    def description(self) -> str:
        """What the dataset says of it, on one line."""
        first, source = self.attempts[0], self.written.get("source")
        parts = [
            f"agent {first.agent}",
            f"weight {first.weight:g}" if first.weight != 1 else "",
            f"tags {', '.join(first.tags)}" if first.tags else "",
            f"from {source}" if source else "",
            "tools answer what was recorded"
            if self.written.get("tool_results") is not None
            else "",
        ]
        return " · ".join(filter(None, parts))

    @property
    def severity(self) -> tuple[int, float, int]:
        """A key that sorts the worst first: it is looked for, and gets room before the others."""
        state = self.state
        return _STATES.index(state), self.score if state == "not met" else 0.0, self.number


class _Texts:
    """Makes texts of others fit for the page, which is its only way there: without secrets, without
    invisible characters, and no more of them than MAX_DETAILS."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._left = MAX_DETAILS

    @property
    def is_spent(self) -> bool:
        """Whether no more texts are to be shown."""
        return self._left <= 0

    def count_answer(self) -> None:
        """Count what an answer takes besides its texts."""
        self._left -= _OVERHEAD

    def take(self, text: str) -> str:
        """`text` up to MAX_TEXT, which counts."""
        shown = self.cut(text)
        self._left -= len(shown)
        return shown

    def cut(self, text: str, limit: int | None = None) -> str:
        """`text` up to `limit`, without secrets before it is cut: a part of one might be left."""
        limit = limit or MAX_TEXT
        return text if len(text) <= limit else redact_secrets(text, self._secrets)[:limit]

    def finalize(self, value: object) -> object:
        """`value` as an expression of a template puts it into the page."""
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, str) and not isinstance(value, Markup):
            return replace_controls(redact_secrets(value, self._secrets))
        return value


def replace_controls(text: str) -> str:
    """`text` with a visible sign for each character that HTML forbids or that cannot be seen."""
    return _CONTROL.sub(lambda found: _CONTROL_PICTURES.get(ord(found[0]), "\ufffd"), text)


def render_report(
    run: EvaluationRun, secrets: tuple[str, ...] = (), baseline: Baseline | None = None
) -> str:
    """The page on `run`, one that was stopped too; `secrets` are shown nowhere in it."""
    summary, results, written = run.read_summary(), run.read_results(), run.read_cases()
    if summary.finished is None:
        summary = msgspec.structs.replace(summarize_results(summary, results), finished=None)
    cases = sorted(
        (
            _CaseReport(number, name, attempts, written.get(name, {}))
            for number, (name, attempts) in enumerate(group_by_case(results).items(), 1)
        ),
        key=lambda case: case.severity,
    )
    failed = [case for case in cases if case.state != "met"]
    met = [case for case in cases if case.state == "met"]
    checks: dict[str, list[Check]] = defaultdict(list)
    for result in results:
        for check in result.checks:
            checks[check.metric].append(check)
    sections = {
        "metrics": ("By metric", checks),
        "distributions": ("Distributions", results),
        "differences": ("Differences", baseline),
        "not-met": ("Cases not met", failed),
        "met": ("Cases met", met),
    }
    page = _build_environment(_Texts(secrets)).get_template("page.html")
    return page.render(
        policy=_POLICY,
        name=run.name,
        summary=summary,
        results=results,
        written=written,
        sections={name: heading for name, (heading, found) in sections.items() if found},
        checks_by_metric=checks,
        failed=failed,
        met=met,
        broken=sum(case.state == "broken" for case in cases),
        score=_build_score_scale(summary, results),
        histograms=_build_histograms(results),
        has_tokens=bool(_list_tokens(results)),
        baseline=baseline,
        **(_describe_differences(baseline, summary) if baseline is not None else {}),
    )


def _build_environment(texts: _Texts) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=texts.finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        extensions=["jinja2.ext.do"],
    )
    environment.filters |= {
        "clamp": clamp,
        "cut": texts.cut,
        "describe": _describe_comparison,
        "explain": _explain_verdict,
        "json": _format_json,
        "marks": select_marks,
        "mean": statistics.fmean,
        "moment": _format_moment,
        "number": _format_number,
        "quantity": _format_quantity,
        "state": _find_state,
    }
    environment.globals["texts"] = texts
    environment.globals["limits"] = {
        "attempts": MAX_ATTEMPTS,
        "calls": MAX_CALLS,
        "details": MAX_DETAILS,
        "min_cases": MIN_CASES,
        "reason": MAX_REASON,
        "rows": MAX_ROWS,
        "text": MAX_TEXT,
        "unfolded": MAX_UNFOLDED,
    }
    return environment


def _build_score_scale(summary: Summary, results: Sequence[Result]) -> Scale:
    band = compute_confidence(results) if results else None
    dots = summary.attempts if len(summary.attempts) > 1 else ()
    return Scale("Score", 0, 1, summary.score, band, dots)


def _build_histograms(results: Sequence[Result]) -> list[Histogram]:
    if not results:
        return []
    scores = list(score_cases(results).values())
    seconds = [result.seconds for result in results]
    found = [
        Histogram("Scores of cases", "case", scores, bin_scores(scores)),
        Histogram("Seconds of an attempt", "attempt", seconds, bin_values(seconds), " s"),
    ]
    if tokens := _list_tokens(results):
        found.append(Histogram("Tokens of an attempt", "attempt", tokens, bin_values(tokens)))
    return found


def _list_tokens(results: Sequence[Result]) -> list[float]:
    """The tokens of the attempts of which all is known."""
    known = (
        result for result in results if all(answer.tokens is not None for answer in result.answers)
    )
    return [result.tokens for result in known if result.tokens]


def _describe_differences(baseline: Baseline, now: Summary) -> dict[str, object]:
    found, before = baseline.comparison, baseline.run.read_summary()
    most = max(abs(found.low), abs(found.high), abs(found.difference), 0.1) * 1.2
    agents = [
        (name, before.agents.get(name), now.agents.get(name))
        for name in sorted({*before.agents, *now.agents})
    ]
    left_out = {
        "Only in the earlier run": found.only_before,
        "Only in this run": found.only_after,
        "Rewritten": found.rewritten,
        "Not judged": found.not_judged,
    }
    return {
        "comparison": found,
        "difference": Scale("Difference", -most, most, found.difference, (found.low, found.high)),
        "changed_agents": [
            (name, *(each.description if each else "not in the run" for each in (was, is_now)))
            for name, was, is_now in agents
            if was != is_now
        ],
        "changes": _select_changes(found.changed),
        "left_out": {why: names for why, names in left_out.items() if names},
    }


def _select_changes(changed: Sequence[Change]) -> list[Change]:
    """The greatest losses and the greatest gains, in this order."""
    order = sorted(changed, key=lambda each: (each.after - each.before, each.id))
    half = MAX_CHANGES // 2
    return order if len(order) <= MAX_CHANGES else [*order[:half], *order[-half:]]


def _find_state(attempts: Sequence[Result]) -> str:
    if any(attempt.error for attempt in attempts):
        return "broken"
    if any(attempt.not_judged for attempt in attempts):
        return "not judged"
    return "not met" if any(attempt.failed for attempt in attempts) else "met"


def _describe_comparison(found: Comparison) -> str:
    if not found.cases:
        return "The two runs have no case in common."
    cases = _format_quantity(found.cases, "case")
    return f"{found.before:.3f} → {found.after:.3f} over {cases}{found.certainty}."


def _explain_verdict(found: Comparison) -> str:
    return "It may be chance all the same." if found.doubt else _EXPLANATIONS[found.verdict]


def _format_json(value: Mapping[str, object]) -> str:
    written = json.dumps(value, ensure_ascii=False)
    return (
        written if len(written) <= MAX_REASON else json.dumps(value, ensure_ascii=False, indent=2)
    )


def _format_moment(moment: str) -> str:
    return moment.replace("T", " ").replace("Z", " UTC")


def _format_number(number: float, form: str = ",") -> str:
    return format(number, form)


def _format_quantity(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
