"""The report on a run, read by a parser of HTML: what it says is what the run came to, and no text
of others becomes a part of it."""

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ai_agent_service.evaluation.dataset import read_dataset
from ai_agent_service.evaluation.report import page as reports
from ai_agent_service.evaluation.report.page import (
    MAX_DETAILS,
    MAX_TEXT,
    Baseline,
    render_report,
    replace_controls,
)
from ai_agent_service.evaluation.results import (
    Check,
    Options,
    Result,
    RunAgent,
    Summary,
    TurnAnswer,
    UsedTool,
)
from ai_agent_service.evaluation.run_folder import EvaluationRun
from ai_agent_service.evaluation.runner import summarize_results
from ai_agent_service.evaluation.scoring import compare_runs, compute_confidence
from tests.support.evaluation import dataset

HOSTILE = (
    "</script><img src=x onerror=alert(1)><script>alert(2)</script>",
    "</style></title></svg></pre>--><!-- ]]> <style>*{display:none}</style>",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' autofocus='",
    "&lt;b&gt; &#60;script&#62; &amp;",
    "\x00\x01\x1b[31m\x7f\x9b\ufffe red",
    "\u202eevil\u202c \u2066x שלום مرحبا",
    "w" * 1_500,
    "=cmd|' /C calc'!A0 `${7*7}` {{7*7}}",
)
_VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """A page as its elements - each a name and its attributes -, the text within each `id`, and all
    of its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.comments: list[str] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.within: list[tuple[str, dict[str, str | None], str]] = []
        """Each element with the text in it."""
        self.feed(text)
        self.close()
        assert self._open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        name, attributes, texts = self._open.pop()
        assert name == tag
        self.within.append((name, attributes, " ".join(" ".join(texts).split())))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        for _, _, texts in self._open:
            texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        """All of it but the style, with one space between words."""
        style = "".join(text for name, _, text in self.within if name == "style")
        return " ".join(" ".join(self.texts).split()).replace(style, "")

    def of(self, **attributes: str) -> list[str]:
        """The texts of the elements that have these attributes; `class_` may be one of several."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            text
            for _, found, text in self.within
            if all(value in (found.get(name) or "").split() for name, value in wanted.items())
        ]


def finished(
    folder: Path,
    results: Sequence[Result],
    *,
    cases: Sequence[dict[str, Any]] | None = None,
    **named: Any,
) -> EvaluationRun:
    """A run that came to its end with `results`."""
    folder.mkdir(exist_ok=True)
    path = dataset(
        folder,
        *(cases or [{"id": result.id, "input": "?"} for result in results if result.attempt == 1]),
    )
    summary = Summary(
        dataset="cases.jsonl",
        started="2026-11-28T15:39:40Z",
        service_version="1.2.3",
        options=Options(repeat=max((result.attempt for result in results), default=1)),
        agents={"shop": RunAgent("0a1b2c3d4e5f", "ollama", "qwen3:8b")},
    )
    run = EvaluationRun.begin(
        folder / "output", path, read_dataset(path), msgspec.structs.replace(summary, **named)
    )
    for result in results:
        run.add(result)
    run.write_summary(summarize_results(run.read_summary(), run.read_results()))
    return run


def scored(name: str, score: float, attempt: int = 1, **answer: Any) -> Result:
    checks = (
        Check("contains", score, "with 'closed'", "'open'"),
        Check("tone", score, "friendly", "it was curt"),
    )
    answers = (
        TurnAnswer(
            "Are you open?", "I do not know.", steps=1, seconds=score + 0.25, tokens=100, **answer
        ),
    )
    return Result(
        id=name, agent="shop", attempt=attempt, score=score, checks=checks, answers=answers
    )


def test_what_it_says_is_what_the_run_came_to(tmp_path: Path) -> None:
    tool = UsedTool("search", {"query": "sunday"}, "closed", seconds=0.5)
    broken = TurnAnswer("Hm?", error="provider_timeout", problem="It took too long.", seconds=1.0)
    results = [
        *(
            scored(f"case{n}", score, attempt)
            for n, scores in enumerate(((1.0, 1.0), (0.5, 0.0), (1.0, 0.5)))
            for attempt, score in enumerate(scores, 1)
        ),
        Result(id="broken", agent="shop", score=0.0, answers=(broken,)),
        Result(id="broken", agent="shop", attempt=2, score=0.0, answers=(broken,)),
        *(
            scored(f"tools{n}", 1.0, attempt, tools=(tool,), notes=("was replayed",))
            for n in (1, 2)
            for attempt in (1, 2)
        ),
    ]
    cases = [
        {"id": name, "input": "?", "source": "docs/shop.md"}
        for name in ("case0", "case1", "case2", "broken", "tools1", "tools2")
    ]
    run = finished(tmp_path, results, cases=cases)
    summary = run.read_summary()
    page = Page(render_report(run))
    assert page.of(class_="score")[0] == f"score {summary.score:.3f} of 1"
    tiles = page.of(class_="tile")
    assert tiles[1:4] == [
        "cases 6 3 met wholly",
        "errors 2 in 1 case",
        "steps 10 questions to the model",
    ]
    assert tiles[4:] == [f"time {summary.seconds:.1f} s of all answers", "tokens 1,000"]
    band = compute_confidence(results)
    assert band is not None
    assert f"between {band[0]:.3f} and {band[1]:.3f}" in page.text
    assert (
        f"2 attempts: mean {summary.score:.3f}, standard deviation {summary.deviation:.3f}"
        in page.text
    )
    for words in (
        "0a1b2c3d4e5f",
        "ollama",
        "qwen3:8b",
        "cases.jsonl",
        "ai-agent-service 1.2.3",
        "2 attempts at each case",
    ):
        assert words in page.text
    assert summary.metrics == {
        "contains": 0.8,
        "tone": 0.8,
    }, "a metric that nobody knew of is shown as any other"
    [metrics] = page.of(id="metrics")
    assert "contains 0.800 7 of 10 tone 0.800 7 of 10" in metrics
    assert page.of(class_="name") == [
        "broken",
        "case1",
        "case2",
        "case0",
        "tools1",
        "tools2",
    ], "the worst come first"
    assert [
        text
        for name, _, text in page.within
        if name == "span" and text in ("broken", "not met", "met")
    ][:1] == ["broken"]
    [first] = [text for text in page.of(class_="case") if " case1 " in text]
    assert "attempt 2: 0.00, 0.25 s" in first
    assert "contains not met with 'closed' 'open'" in first
    assert "from docs/shop.md" in first
    [trace] = [text for text in page.of(class_="case") if " tools2 " in text]
    assert re.search(
        r"User Are you open\? calls search success 0\.50 s .*sunday.* answers closed Agent 1 step,"
        r" 1\.25 s, 100 tokens",
        trace,
    )
    assert "note: was replayed" in trace
    assert "provider_timeout It took too long." in page.text


def test_it_needs_nothing_but_itself(tmp_path: Path) -> None:
    before = finished(tmp_path, [scored(f"case{n}", 1.0) for n in range(8)])
    after = finished(tmp_path, [scored(f"case{n}", n / 8) for n in range(8)])
    text = render_report(after, (), Baseline(before, compare_runs(before, after)))
    page = Page(text)
    policy = [
        found.get("content")
        for name, found in page.elements
        if name == "meta" and "http-equiv" in found
    ]
    assert policy == [reports._POLICY]
    assert str(policy[0]).startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert {name for name, _ in page.elements} & {
        "script",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "img",
        "use",
        "image",
    } == set()
    addresses = [
        value
        for _, found in page.elements
        for name, value in found.items()
        if name in ("href", "src", "action", "xlink:href")
    ]
    assert {str(value)[0] for value in addresses} == {"#", "d"}
    assert [value for value in addresses if not str(value).startswith("#")] == ["data:,"]
    [style] = [text for name, _, text in page.within if name == "style"]
    assert re.findall(r"url\(|@import|@font-face|expression", style) == []
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {str(value)[1:] for value in addresses if str(value).startswith("#")} <= set(ids)
    pictures = [found for name, found in page.elements if name == "svg"]
    assert {found.get("role") or found.get("aria-hidden") for found in pictures} == {"img", "true"}
    told = [text for name, _, text in page.within if name == "desc"]
    assert len(told) == sum(found.get("role") == "img" for found in pictures) == 5
    assert "With 95 % confidence the score lies between" in told[0]
    assert page.of(id="differences-heading") == ["Differences"]


def _worded(words: str) -> tuple[list[dict[str, Any]], list[Result], dict[str, Any]]:
    """A run with `words` wherever others may put them."""
    tool = UsedTool(words, {words: [words]}, words, is_error=True, outcome="error")
    answers = (
        TurnAnswer(
            words, words, tools=(tool, UsedTool("t", None, "")), notes=(words,), steps=1, tokens=1
        ),
        TurnAnswer(words, error="broken", problem=words),
    )
    checks = (Check(words, 0.5, words, words), Check(words, 0.0, words, words, turn=2))
    results = [
        Result(
            id=words[:150], agent=words, tags=(words,), score=0.25, checks=checks, answers=answers
        )
    ]
    cases = [{"id": words[:150], "turns": [{"input": words}], "source": words}]
    named = {
        "dataset": words,
        "agents": {words: RunAgent(words, words, words)},
        "options": Options(agent=words, model=words),
    }
    return cases, results, named


def _written(folder: Path, words: str) -> EvaluationRun:
    cases, results, named = _worded(words)
    return finished(folder, results, cases=cases, **named)


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_text_is_shown_and_does_nothing(tmp_path: Path, words: str) -> None:
    hostile, plain = (
        Page(render_report(_written(tmp_path / name, text)))
        for name, text in (("a", words), ("b", "plain"))
    )

    def shape(page: Page) -> list[tuple[str, list[str]]]:
        return [(name, sorted(found)) for name, found in page.elements]

    assert shape(hostile) == shape(plain)
    assert hostile.comments == []
    shown = replace_controls(words)
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown) == []
    assert sum(shown[:140] in text for text in hostile.texts) >= 12
    assert [found.get("dir") for name, found in hostile.elements if name == "pre"] == ["auto"] * 7


def test_texts_that_are_long_are_cut_and_that_is_told(tmp_path: Path) -> None:
    result = Result(
        id="long", agent="shop", score=1.0, answers=(TurnAnswer("?", "word " * 10_000),)
    )
    page = Page(render_report(finished(tmp_path, [result])))
    assert (
        f"Cut here: {MAX_TEXT:,} of 50,000 characters are shown; results.jsonl has all."
        in page.text
    )
    assert max(len(text) for text in page.texts) < MAX_TEXT + 20_000


@pytest.mark.parametrize("place", [0, MAX_TEXT - 8])
def test_a_secret_is_shown_nowhere_and_no_part_of_one(tmp_path: Path, place: int) -> None:
    secret, key = "hunter2hunter2<&>", "sk-abcdefgh12345678"
    filler = "x " * (place // 2)
    text = render_report(_written(tmp_path, f"{filler}{secret} {filler}{key} {filler}"), (secret,))
    assert "[redacted]" in text
    for part in ("hunter2", "abcdefgh"):
        assert part not in text


def test_thousands_of_cases_stay_small_and_each_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_DETAILS", MAX_DETAILS // 10)
    results = [
        Result(
            id=f"case{n:04}",
            agent="shop",
            score=n % 2,
            checks=(Check("exact", n % 2, "'a'", "'b'"),),
            answers=(TurnAnswer("?", "word " * 200),),
        )
        for n in range(2_000)
    ]
    text = render_report(finished(tmp_path, results))
    page = Page(text)
    assert sorted(page.of(class_="name")) == [result.id for result in results]
    bare = sum("bare" in str(found.get("class")) for _, found in page.elements)
    assert 0 < 2_000 - bare < 200
    assert "the cases that went worst first" in page.text
    assert len(text) < 2_000_000


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            lambda n: 1.0,
            lambda n: 0.5,
            "worse 1.000 → 0.500 over 8 cases, difference -0.500 (95 % between -0.500 and -0.500).",
        ),
        (
            lambda n: 0.0,
            lambda n: 0.5,
            (
                "better 0.000 → 0.500 over 8 cases, difference +0.500 (95 % between +0.500 and"
                " +0.500)."
            ),
        ),
        (
            lambda n: n % 2,
            lambda n: (n // 2) % 2,
            "within noise 0.500 → 0.500 over 8 cases, difference +0.000 (95 % between ",
        ),
    ],
)
def test_a_difference_is_called_what_it_is(
    tmp_path: Path, before: Callable[[int], float], after: Callable[[int], float], told: str
) -> None:
    old = finished(
        tmp_path, [*(scored(f"case{n}", before(n)) for n in range(8)), scored("gone", 1.0)]
    )
    new = finished(
        tmp_path, [*(scored(f"case{n}", after(n)) for n in range(8)), scored("added", 1.0)]
    )
    page = Page(render_report(new, (), Baseline(old, compare_runs(old, new))))
    [said] = page.of(class_="against")
    assert said.startswith(told)
    [differences] = page.of(id="differences")
    changed = [n for n in range(8) if before(n) != after(n)]
    assert f"{len(changed)} cases changed" in differences
    for n in changed:
        assert f"case{n} {before(n):.2f} {after(n):.2f} {after(n) - before(n):+.2f}" in differences
    assert "Only in the earlier run gone Only in this run added" in differences
    assert ("that may be chance" in differences) == told.startswith("within noise")


def test_few_cases_tell_nothing_for_certain(tmp_path: Path) -> None:
    old, new = (
        finished(tmp_path, [scored(f"case{n}", score) for n in range(5)]) for score in (1.0, 0.0)
    )
    page = Page(render_report(new, (), Baseline(old, compare_runs(old, new))))
    assert page.of(class_="against") == [
        "within noise 1.000 → 0.000 over 5 cases; fewer than 6 cases tell nothing for certain."
    ]
    assert "Fewer than 6 cases do not tell how certain the score is." in page.text


def test_a_run_that_was_stopped_says_so(tmp_path: Path) -> None:
    run = finished(
        tmp_path, [scored("a", 1.0)], cases=[{"id": name, "input": "?"} for name in "abc"]
    )
    run.write_summary(
        msgspec.structs.replace(run.read_summary(), finished=None, score=0.0, cases=0)
    )
    page = Page(render_report(run))
    assert (
        "This run was stopped: 1 of 3 attempts are done. To go on: ai-agent-service eval run"
        f" --resume {run.name}" in page.text
    )
    assert page.of(class_="score")[0] == "score 1.000 of 1"
    run.write_summary(msgspec.structs.replace(run.read_summary(), options=Options(repeat=2)))
    (run.folder / "results.jsonl").unlink()
    assert "This run was stopped: 0 of 6 attempts are done." in Page(render_report(run)).text


def test_what_was_not_judged_is_no_pass_and_the_judge_is_named(tmp_path: Path) -> None:
    unknown = Check("g_eval", 0.0, "kind", "", not_judged="the judge is away", tokens=30)
    kind = Check("g_eval", 0.7, "kind", "it is", threshold=0.5, tokens=30)
    results = [
        msgspec.structs.replace(scored("a", 1.0), checks=(unknown,)),
        msgspec.structs.replace(scored("b", 0.7), checks=(kind,)),
    ]
    page = Page(render_report(finished(tmp_path, results, options=Options(judge="openai:gpt-x"))))
    assert "unknown 1 not judged, count 0" in page.of(class_="tile")
    assert "Judge openai:gpt-x : 60 tokens" in page.text
    assert "1 of 2, 1 not judged" in page.of(id="metrics")[0]
    [bad] = page.of(class_="not-judged")
    assert "not judged: g_eval: the judge is away" in bad
    assert "g_eval not judged kind the judge is away" in bad
    assert "g_eval met (0.70) kind it is" in page.of(id="met")[0]
