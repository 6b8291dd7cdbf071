"""A run as one page of HTML that needs no network and no script: scores, distributions,
differences, and what was asked and answered."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from ai_agent_service.core.redaction import redact_secrets
from ai_agent_service.evaluation.report import charts as pictures
from ai_agent_service.evaluation.report.charts import Bin
from ai_agent_service.evaluation.report.html import Element, render_page, tag
from ai_agent_service.evaluation.results import Check, Result, Summary, TurnAnswer, UsedTool
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


class Baseline(msgspec.Struct, frozen=True):
    """An earlier run, and how the one that is reported differs from it."""

    run: EvaluationRun
    comparison: Comparison


class _CaseReport(msgspec.Struct, frozen=True):
    """What came of a case in all attempts at it; `number` is its place in the dataset, `source`
    where it comes from."""

    number: int
    name: str
    attempts: Sequence[Result]
    source: str

    @property
    def score(self) -> float:
        return statistics.fmean(attempt.score for attempt in self.attempts)

    @property
    def state(self) -> str:
        if any(attempt.error for attempt in self.attempts):
            return "broken"
        if any(attempt.not_judged for attempt in self.attempts):
            return "not judged"
        return "not met" if any(attempt.failed for attempt in self.attempts) else "met"

    @property
    def reason(self) -> str:
        """What broke it, was not judged or not met, on one line."""
        errors = [
            f"error {answer.error}: {answer.problem}"
            for attempt in self.attempts
            if (answer := attempt.error) is not None
        ]
        failed = [
            f"{check.metric}: {check.expected}"
            for attempt in self.attempts
            for check in attempt.failed
        ]
        unknown = [
            f"not judged: {check.metric}: {check.not_judged}"
            for attempt in self.attempts
            for check in attempt.not_judged
        ]
        return " ".join("; ".join(dict.fromkeys([*errors, *unknown, *failed])).split())


def render_report(
    run: EvaluationRun, secrets: tuple[str, ...] = (), baseline: Baseline | None = None
) -> str:
    """The page on `run`, one that was stopped too; `secrets` are shown nowhere in it."""
    return _ReportRenderer(run, secrets, baseline).render()


class _ReportRenderer:
    def __init__(
        self, run: EvaluationRun, secrets: tuple[str, ...], baseline: Baseline | None
    ) -> None:
        self._run = run
        self._secrets = secrets
        self._baseline = baseline
        self._results = run.read_results()
        self._written = run.read_cases()
        summary = run.read_summary()
        self._is_finished = summary.finished is not None
        self._summary = (
            summary
            if self._is_finished
            else msgspec.structs.replace(summarize_results(summary, self._results), finished=None)
        )
        by_case: dict[str, list[Result]] = {}
        for result in self._results:
            by_case.setdefault(result.id, []).append(result)
        self._cases = [
            _CaseReport(
                number, name, attempts, str(self._written.get(name, {}).get("source") or "")
            )
            for number, (name, attempts) in enumerate(by_case.items(), 1)
        ]
        self._left = MAX_DETAILS

    def render(self) -> str:
        summary = self._summary
        head = tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", name="referrer", content="no-referrer"),
            tag("meta", name="robots", content="noindex"),
            tag("link", rel="icon", href="data:,"),
            tag("title", f"{summary.score:.3f} - {self._run.name}"),
            tag("style", Path(__file__).with_name("report.css").read_text(encoding="utf-8")),
        )
        sections = [
            self._render_metrics(),
            self._render_distributions(),
            self._render_differences(),
            *self._render_case_lists(),
        ]
        found = [section for section in sections if section is not None]
        links = [
            tag("li", tag("a", section[0].text or "", href=f"#{section.get('id')}"))
            for section in found
        ]
        body = tag(
            "body",
            self._render_head(),
            tag("nav", tag("ul", *links), aria_label="On this page"),
            tag("main", *found),
            self._render_foot(),
        )
        return render_page(tag("html", head, body, lang="en"), self._secrets)

    # What the run is, and what it came to.

    def _render_head(self) -> Element:
        summary = self._summary
        met = sum(case.state == "met" for case in self._cases)
        broken = sum(case.state == "broken" for case in self._cases)
        tiles = [
            ("score", f"{summary.score:.3f}", "of 1"),
            ("cases", f"{summary.cases}", f"{met} met wholly"),
            ("errors", f"{summary.errors}", f"in {_format_count(broken, 'case')}"),
            *(
                [("unknown", f"{summary.not_judged:,}", "not judged, count 0")]
                if summary.not_judged
                else []
            ),
            ("steps", f"{summary.steps:,}", "questions to the model"),
            ("time", f"{summary.seconds:,.1f} s", "of all answers"),
            (
                "tokens",
                f"{summary.tokens:,}" if self._tokens else "-",
                "" if self._tokens else "not told by the provider",
            ),
            *(
                [("cost", f"${summary.cost:.4f}", "as the provider tells it")]
                if summary.cost
                else []
            ),
        ]
        return tag(
            "header",
            tag("p", "Evaluation", class_="over"),
            tag("h1", tag("bdi", self._run.name)),
            self._render_stopped_notice(),
            self._render_verdict(),
            tag(
                "dl",
                *(
                    tag(
                        "div",
                        tag("dt", name),
                        tag("dd", value),
                        tag("dd", more, class_="more"),
                        class_=f"tile {name}",
                    )
                    for name, value, more in tiles
                ),
                class_="tiles",
            ),
            *self._render_certainty(),
            self._render_facts(),
        )

    def _render_stopped_notice(self) -> Element | None:
        if self._is_finished:
            return None
        wanted = len(self._written) * self._summary.options.repeat
        told = (
            f"This run was stopped: {len(self._results)} of {_format_count(wanted, 'attempt')} are"
            " done. To go on: "
        )
        return tag(
            "p",
            told,
            tag("code", f"ai-agent-service eval run --resume {self._run.name}"),
            class_="notice",
        )

    def _render_verdict(self) -> Element | None:
        if self._baseline is None:
            return None
        found = self._baseline.comparison
        return tag(
            "p",
            tag("b", found.verdict, class_=f"verdict {found.verdict.split()[0]}"),
            " ",
            _describe_comparison(found),
            class_="against",
        )

    def _render_certainty(self) -> list[Element]:
        """The score on its scale, and what may be said of how certain it is."""
        summary = self._summary
        if not self._cases:
            return []
        band = compute_confidence(self._results)
        told = []
        if band is not None:
            told.append(
                f"With 95 % confidence the score lies between {band[0]:.3f} and {band[1]:.3f}, as"
                f" far as {summary.cases} cases can tell (bootstrap over the cases)."
            )
        elif summary.cases < MIN_CASES:
            told.append(f"Fewer than {MIN_CASES} cases do not tell how certain the score is.")
        else:
            told.append("All cases have the same score, so they do not tell how certain it is.")
        if len(summary.attempts) > 1:
            mean = statistics.fmean(summary.attempts)
            told.append(
                f"{len(summary.attempts)} attempts: mean {mean:.3f}, standard deviation"
                f" {summary.deviation:.3f}, from {summary.minimum:.3f} to {summary.maximum:.3f}."
            )
        dots = summary.attempts if len(summary.attempts) > 1 else ()
        described = f"The score is {summary.score:.3f} on a scale from 0 to 1. {' '.join(told)}"
        picture = pictures.draw_scale(
            "Score", described, low=0, high=1, value=summary.score, band=band, dots=dots
        )
        return [tag("figure", picture, tag("figcaption", " ".join(told)), class_="scale")]

    def _render_facts(self) -> Element:
        summary, options = self._summary, self._summary.options
        chosen = [
            f"agent {options.agent}" if options.agent else "",
            f"model {options.model}" if options.model else "",
            (
                f"{options.repeat} attempts at each case"
                if options.repeat > 1
                else "one attempt at each case"
            ),
            "tools recorded" if options.record else "",
        ]
        rows: list[tuple[str, list[Element | str]]] = [
            ("Dataset", [tag("bdi", summary.dataset)]),
            ("Started", [tag("time", _format_moment(summary.started), datetime=summary.started)]),
            (
                "Finished",
                (
                    [tag("time", _format_moment(summary.finished), datetime=summary.finished)]
                    if summary.finished
                    else ["it was stopped"]
                ),
            ),
            ("Options", [", ".join(filter(None, chosen))]),
            ("Service", [f"ai-agent-service {summary.service_version}"]),
        ]
        if options.judge is not None:
            cost = f", ${summary.judge_cost:.4f}" if summary.judge_cost else ""
            rows.append(
                ("Judge", [tag("bdi", options.judge), f": {summary.judge_tokens:,} tokens{cost}"])
            )
        agents = _render_table(
            ("Agent", "Version", "Provider", "Model"),
            [
                [tag("bdi", name), tag("code", each.version), each.provider, tag("bdi", each.model)]
                for name, each in summary.agents.items()
            ],
        )
        return tag(
            "div", tag("dl", *_render_definitions(rows), class_="facts"), agents, class_="about"
        )

    # Sections.

    def _render_metrics(self) -> Element | None:
        checks: dict[str, list[Check]] = {}
        for result in self._results:
            for check in result.checks:
                checks.setdefault(check.metric, []).append(check)
        if not checks:
            return None
        rows: list[list[Element | str]] = []
        for name, score in self._summary.metrics.items():
            judged = checks.get(name, [])
            met = sum(check.is_met for check in judged)
            unknown = sum(bool(check.not_judged) for check in judged)
            told = f"{met:,} of {len(judged):,}" + (f", {unknown:,} not judged" if unknown else "")
            rows.append([tag("code", name), pictures.draw_bar(score), f"{score:.3f}", told])
        told = (
            "The mean of all that was expected under a name, by the weights of the cases. Turns"
            " that an error broke are not in it."
        )
        return _render_section(
            "metrics",
            "By metric",
            tag("p", told),
            _render_table(("Metric", "", "Score", "Met"), rows, ("", "wide", "n", "n")),
        )

    def _render_distributions(self) -> Element | None:
        if not self._cases:
            return None
        scores = list(score_cases(self._results).values())
        figures = [
            _render_histogram("Scores of cases", scores, pictures.bin_scores(scores), "", "cases")
        ]
        seconds = [result.seconds for result in self._results]
        figures.append(
            _render_histogram(
                "Seconds of an attempt", seconds, pictures.bin_values(seconds), " s", "attempts"
            )
        )
        if tokens := self._tokens:
            figures.append(
                _render_histogram(
                    "Tokens of an attempt", tokens, pictures.bin_values(tokens), "", "attempts"
                )
            )
        return _render_section(
            "distributions", "Distributions", tag("div", *figures, class_="figures")
        )

    @property
    def _tokens(self) -> list[float]:
        """The tokens of the attempts of which all is told."""
        told = (
            result
            for result in self._results
            if all(answer.tokens is not None for answer in result.answers)
        )
        return [result.tokens for result in told if result.tokens]

    def _render_differences(self) -> Element | None:
        if self._baseline is None:
            return None
        found, before = self._baseline.comparison, self._baseline.run
        parts: list[Element | None] = [
            tag(
                "p",
                "Compared case by case with ",
                tag("bdi", before.name),
                f". {_describe_comparison(found)}",
            )
        ]
        if found.cases >= MIN_CASES:
            most = max(abs(found.low), abs(found.high), abs(found.difference), 0.1) * 1.2
            described = (
                f"{found.difference:+.3f}; with 95 % confidence between {found.low:+.3f} and"
                f" {found.high:+.3f}: {found.verdict}."
            )
            band = (found.low, found.high)
            picture = pictures.draw_scale(
                "Difference",
                described,
                low=-most,
                high=most,
                value=found.difference,
                band=band,
                dots=(),
            )
            caption = (
                f"The difference, and where it lies with 95 % confidence. {_explain_verdict(found)}"
            )
            parts.append(tag("figure", picture, tag("figcaption", caption), class_="scale"))
        parts.append(_render_agent_changes(before.read_summary(), self._summary))
        parts.append(_render_changes(found.changed))
        left_out = {
            "Only in the earlier run": found.only_before,
            "Only in this run": found.only_after,
            "Rewritten": found.rewritten,
            "Not judged": found.not_judged,
        }
        rows: list[tuple[str, list[Element | str]]] = [
            (why, [_format_names(names)]) for why, names in left_out.items() if names
        ]
        if rows:
            parts += [tag("h3", "Left out"), tag("dl", *_render_definitions(rows), class_="facts")]
        return _render_section("differences", "Differences", *parts)

    def _render_case_lists(self) -> list[Element | None]:
        order = {"broken": 0, "not judged": 1, "not met": 2, "met": 3}
        # The worst first: they are what is looked for, and they are given room before the others.
        cases = sorted(
            self._cases,
            key=lambda case: (
                order[case.state],
                case.score if case.state == "not met" else 0.0,
                case.number,
            ),
        )
        failed = [case for case in cases if case.state != "met"]
        met = [case for case in cases if case.state == "met"]
        found: list[Element | None] = []
        if failed:
            told = (
                "Those that an error broke first, then those not judged, then by their scores. Open"
                " one to see what was said and done."
            )
            if self._summary.options.repeat > 1:
                told += " Marks on a bar are attempts that differ."
            found.append(
                _render_section(
                    "not-met", "Cases not met", tag("p", told), *self._render_rows(failed)
                )
            )
        if met:
            summary = tag("summary", f"{_format_count(len(met), 'case')} met all that was expected")
            is_open = "" if len(met) <= MAX_UNFOLDED or not failed else None
            found.append(
                _render_section(
                    "met",
                    "Cases met",
                    tag("details", summary, *self._render_rows(met), open=is_open, class_="group"),
                )
            )
        return found

    # Cases.

    def _render_rows(self, cases: Sequence[_CaseReport]) -> list[Element]:
        rows = [self._render_row(case) for case in cases[:MAX_ROWS]]
        if len(cases) > MAX_ROWS:
            rows.append(
                _render_cut_note(
                    f"{len(cases) - MAX_ROWS:,} more cases are not shown here; results.jsonl has"
                    " them all."
                )
            )
        return rows

    def _render_row(self, case: _CaseReport) -> Element:
        attempts = case.attempts
        scores = [attempt.score for attempt in attempts]
        spread = f"{min(scores):.2f} to {max(scores):.2f}" if len(set(scores)) > 1 else ""
        tokens = sum(attempt.tokens for attempt in attempts)
        took = f"{sum(attempt.seconds for attempt in attempts):.2f} s" + (
            f", {tokens:,} tokens" if tokens else ""
        )
        told = case.reason
        why = self._truncate(told, MAX_REASON)
        cells = (
            tag("span", case.state, class_="state"),
            tag("bdi", case.name, class_="name"),
            pictures.draw_bar(case.score, scores if spread else ()),
            tag("span", f"{case.score:.2f}", class_="score"),
            tag("span", spread, class_="spread") if spread else None,
            tag("span", took, class_="took"),
            (
                tag(
                    "span", f"{why}..." if len(told) > MAX_REASON else why, dir="auto", class_="why"
                )
                if why
                else None
            ),
        )
        kind = case.state.replace(" ", "-")
        if self._left <= 0:
            return tag("div", tag("div", *cells, class_="row"), class_=f"case bare {kind}")
        return tag(
            "details",
            tag("summary", *cells, class_="row"),
            *self._render_details(case),
            class_=f"case {kind}",
        )

    def _render_details(self, case: _CaseReport) -> list[Element]:
        about = [
            f"agent {case.attempts[0].agent}",
            f"weight {case.attempts[0].weight:g}" if case.attempts[0].weight != 1 else "",
            f"tags {', '.join(case.attempts[0].tags)}" if case.attempts[0].tags else "",
            f"from {case.source}" if case.source else "",
            (
                "tools answer what was recorded"
                if self._written.get(case.name, {}).get("tool_results") is not None
                else ""
            ),
        ]
        parts = [
            tag(
                "p",
                self._truncate(" · ".join(filter(None, about))),
                class_="about-case",
                dir="auto",
            )
        ]
        if len(case.attempts) == 1:
            return [*parts, *self._render_turns(case.attempts[0])]
        worst = sorted(
            case.attempts,
            key=lambda attempt: (attempt.error is None, attempt.score, attempt.attempt),
        )
        for attempt in worst[:MAX_ATTEMPTS]:
            state = (
                "broken"
                if attempt.error
                else "not-judged"
                if attempt.not_judged
                else "not-met"
                if attempt.failed
                else "met"
            )
            told = f"attempt {attempt.attempt}: {attempt.score:.2f}, {attempt.seconds:.2f} s"
            is_open = "" if attempt is worst[0] else None
            parts.append(
                tag(
                    "details",
                    tag("summary", told),
                    *self._render_turns(attempt),
                    open=is_open,
                    class_=f"attempt {state}",
                )
            )
        if len(worst) > MAX_ATTEMPTS:
            parts.append(
                _render_cut_note(
                    f"{len(worst) - MAX_ATTEMPTS} more attempts, which went no worse, are not shown"
                    " here; results.jsonl has them."
                )
            )
        return parts

    def _render_turns(self, attempt: Result) -> list[Element]:
        found = []
        for number, answer in enumerate(attempt.answers, 1):
            checks = [check for check in attempt.checks if check.turn == number]
            heading = (
                tag("h3", f"Turn {number} of {len(attempt.answers)}")
                if len(attempt.answers) > 1
                else None
            )
            found.append(
                tag(
                    "div",
                    heading,
                    self._render_transcript(answer),
                    self._render_checks(checks),
                    class_="turn",
                )
            )
        return found

    def _render_transcript(self, answer: TurnAnswer) -> Element:
        """What was said and done in a turn, one after the other."""
        self._left -= _OVERHEAD
        said = [_render_step("user", "User", "", *self._render_text(answer.input))]
        said += (self._render_call(tool, answer) for tool in answer.tools[:MAX_CALLS])
        if len(answer.tools) > MAX_CALLS:
            said.append(
                tag(
                    "li",
                    _render_cut_note(
                        f"{len(answer.tools) - MAX_CALLS} more calls are not shown here;"
                        " results.jsonl has them."
                    ),
                    class_="tool",
                )
            )
        took = [
            _format_count(answer.steps, "step"),
            f"{answer.seconds:.2f} s",
            f"{answer.tokens:,} tokens" if answer.tokens is not None else "tokens not told",
            f"${answer.cost:.6f}" if answer.cost is not None else "",
            "refused" if answer.refused else "",
        ]
        parts = self._render_text(answer.text) if answer.text or answer.error is None else []
        if answer.error is not None:
            parts.append(
                tag(
                    "p",
                    tag("b", answer.error),
                    f" {self._truncate(answer.problem)}",
                    class_="error",
                    dir="auto",
                )
            )
        parts += (
            tag("p", f"note: {self._truncate(note)}", class_="note", dir="auto")
            for note in answer.notes
        )
        said.append(
            _render_step(
                "agent broken" if answer.error else "agent",
                "Agent",
                ", ".join(filter(None, took)),
                *parts,
            )
        )
        return tag("ol", *said, class_="trace")

    def _render_call(self, tool: UsedTool, answer: TurnAnswer) -> Element:
        arguments = (
            "not the JSON object that they have to be"
            if tool.arguments is None
            else _format_json(tool.arguments)
        )
        took = f"{tool.seconds:.2f} s" if tool.seconds else ""
        share = (
            pictures.draw_bar(tool.seconds / answer.seconds)
            if tool.seconds and answer.seconds
            else None
        )
        outcome = "error" if tool.outcome == "success" and tool.is_error else tool.outcome
        name = tag("span", "calls ", tag("code", tag("bdi", self._truncate(tool.name, MAX_REASON))))
        return tag(
            "li",
            tag(
                "p",
                name,
                tag("span", outcome, class_=f"outcome {outcome}"),
                tag("span", took, share, class_="took"),
                class_="who",
            ),
            *(self._render_text(arguments) if arguments != "{}" else []),
            tag("div", tag("span", "answers", class_="answers"), *self._render_text(tool.content)),
            class_=f"tool {outcome}",
        )

    def _render_checks(self, checks: Iterable[Check]) -> Element | None:
        rows: list[list[Element | str]] = []
        for check in checks:
            said = "not judged" if check.not_judged else "met" if check.is_met else "not met"
            if 0 < check.score < 1:
                said = f"{said} ({check.score:.2f})"
            met = tag("span", said, class_="good" if check.is_met else "bad")
            rows.append(
                [
                    tag("code", check.metric),
                    met,
                    *(
                        tag("span", self._take_text(each), dir="auto")
                        for each in (check.expected, check.not_judged or check.came)
                    ),
                ]
            )
        return (
            _render_table(("Metric", "", "Expected", "Came"), rows, ("", "", "said", "said"))
            if rows
            else None
        )

    # Texts of others.

    def _render_text(self, text: str) -> list[Element]:
        """`text` as it is, in its own direction; what is cut off is told."""
        shown = self._take_text(text)
        found = [tag("pre", shown or "(nothing)", dir="auto", class_=None if shown else "nothing")]
        if len(text) > MAX_TEXT:
            found.append(
                _render_cut_note(
                    f"Cut here: {MAX_TEXT:,} of {len(text):,} characters are shown; results.jsonl"
                    " has all."
                )
            )
        return found

    def _take_text(self, text: str) -> str:
        shown = self._truncate(text)
        self._left -= len(shown)
        return shown

    def _truncate(self, text: str, limit: int = MAX_TEXT) -> str:
        """`text` up to `limit`. Secrets are taken out before it is cut, or a part of one might be
        left."""
        return text if len(text) <= limit else redact_secrets(text, self._secrets)[:limit]

    def _render_foot(self) -> Element:
        told = [
            "Made by ai-agent-service. summary.json, results.jsonl and dataset.jsonl in the folder"
            " of the run have all of it. What looks like a key, and secrets of the environment, are"
            " shown as [redacted]."
        ]
        if self._left <= 0:
            told.append(
                f"As there is much of it, texts of about {MAX_DETAILS:,} characters are shown, the"
                " cases that went worst first."
            )
        return tag("footer", tag("p", " ".join(told)))


def _render_section(name: str, heading: str, *parts: Element | None) -> Element:
    return tag(
        "section",
        tag("h2", heading, id=f"{name}-heading"),
        *parts,
        id=name,
        aria_labelledby=f"{name}-heading",
    )


def _render_table(
    columns: Sequence[str], rows: Iterable[Sequence[Element | str]], kinds: Sequence[str] = ()
) -> Element:
    classes = [kind or None for kind in kinds] or [None] * len(columns)
    head = tag(
        "tr",
        *(
            tag("th", column, scope="col", class_=kind)
            for column, kind in zip(columns, classes, strict=True)
        ),
    )
    body = [
        tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, classes, strict=True)))
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scrolls")


def _render_histogram(
    title: str, values: Sequence[float], bins: Sequence[Bin], unit: str, things: str
) -> Element:
    middle = statistics.median(values)
    told = f"From {min(values):.4g}{unit} to {max(values):.4g}{unit}, median {middle:.4g}{unit}."
    if min(values) == max(values):
        told = f"All are {middle:.4g}{unit}."
    counted = [found for found in bins if found.count]
    described = f"{title}: {_format_count(len(values), things[:-1])}. {told}"
    table = _render_table(
        (f"{title.split()[0]}", things.capitalize()),
        [[pictures.format_label(each), f"{each.count:,}"] for each in counted],
        ("", "n"),
    )
    return tag(
        "figure",
        tag("h3", title),
        pictures.draw_histogram(title, described, bins),
        tag("figcaption", told),
        tag("details", tag("summary", "As a table"), table),
    )


def _render_changes(changed: Sequence[Change]) -> Element:
    if not changed:
        return tag("p", "No case has another score than it had.")
    order = sorted(changed, key=lambda each: (each.after - each.before, each.id))
    # The greatest of both signs where there are too many.
    shown = (
        order
        if len(order) <= MAX_CHANGES
        else [*order[: MAX_CHANGES // 2], *order[-MAX_CHANGES // 2 :]]
    )
    rows: list[list[Element | str]] = []
    for each in shown:
        gain = each.after - each.before
        told = tag("span", f"{gain:+.2f}", class_="good" if gain > 0 else "bad")
        rows.append(
            [
                tag("bdi", each.id),
                pictures.draw_change(each.before, each.after),
                f"{each.before:.2f}",
                f"{each.after:.2f}",
                told,
            ]
        )
    down = sum(each.after < each.before for each in order)
    lead = f"{_format_count(len(order), 'case')} changed: {down} went down, {len(order) - down} up."
    if len(shown) < len(order):
        lead += f" The {len(shown)} that changed most are shown."
    table = _render_table(
        ("Case", "From 0 to 1", "Before", "Now", "Change"),
        rows,
        ("said", "step-column", "n", "n", "n"),
    )
    return tag("div", tag("h3", "Cases that changed"), tag("p", lead), table)


def _render_agent_changes(before: Summary, now: Summary) -> Element | None:
    rows: list[list[Element | str]] = []
    for name in sorted({*before.agents, *now.agents}):
        was, is_now = before.agents.get(name), now.agents.get(name)
        if was != is_now:
            told = (
                f"{each.version} by {each.provider} {each.model}" if each else "not in the run"
                for each in (was, is_now)
            )
            rows.append([tag("bdi", name), *(tag("bdi", words) for words in told)])
    if not rows:
        return tag("p", "The agents are the same in both runs.")
    return tag(
        "div", tag("h3", "Agents that changed"), _render_table(("Agent", "Before", "Now"), rows)
    )


def _describe_comparison(found: Comparison) -> str:
    if not found.cases:
        return "The two runs have no case in common."
    over = f"{found.before:.3f} → {found.after:.3f} over {_format_count(found.cases, 'case')}"
    if found.cases < MIN_CASES:
        return f"{over}; fewer than {MIN_CASES} cases tell nothing for certain."
    doubt = f"; {found.doubt}" if found.doubt else ""
    return (
        f"{over}, difference {found.difference:+.3f} (95 % between {found.low:+.3f} and"
        f" {found.high:+.3f}){doubt}."
    )


def _explain_verdict(found: Comparison) -> str:
    match found.verdict:
        case "better":
            return "All of that is above 0: this run is better."
        case "worse":
            return "All of that is below 0: this run is worse."
        case "within noise":
            return (
                "It may be chance all the same."
                if found.doubt
                else "0 is in it: that may be chance."
            )


def _render_step(kind: str, who: str, took: str, *parts: Element) -> Element:
    return tag(
        "li",
        tag("p", tag("b", who), tag("span", took, class_="took") if took else None, class_="who"),
        *parts,
        class_=kind,
    )


def _render_definitions(rows: Iterable[tuple[str, Sequence[Element | str]]]) -> list[Element]:
    return [tag("div", tag("dt", name), tag("dd", *parts)) for name, parts in rows]


def _format_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_CALLS:,} more" if len(names) > MAX_CALLS else ""
    return ", ".join(names[:MAX_CALLS]) + more


def _render_cut_note(told: str) -> Element:
    return tag("p", told, class_="cut")


def _format_json(value: Mapping[str, object]) -> str:
    written = json.dumps(value, ensure_ascii=False)
    return (
        written if len(written) <= MAX_REASON else json.dumps(value, ensure_ascii=False, indent=2)
    )


def _format_moment(moment: str) -> str:
    return moment.replace("T", " ").replace("Z", " UTC")


def _format_count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
