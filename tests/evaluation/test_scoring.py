"""What is said of scores, and of the difference between two runs."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ai_agent_service.evaluation.dataset import read_dataset
from ai_agent_service.evaluation.results import Check, Options, Result, Summary
from ai_agent_service.evaluation.run_folder import EvaluationRun
from ai_agent_service.evaluation.scoring import (
    MIN_CASES,
    compare,
    compare_runs,
    compute_chance,
    compute_confidence,
    compute_interval,
    compute_score,
    score_attempts,
    score_cases,
    score_metrics,
)
from tests.support.evaluation import dataset


def scored(*scores: float, attempt: int = 1) -> list[Result]:
    return [
        Result(id=f"case{number}", agent="a", attempt=attempt, score=score)
        for number, score in enumerate(scores)
    ]


def test_weights_and_attempts_count() -> None:
    results = [Result(id="a", agent="x", weight=3, score=1.0), Result(id="b", agent="x", score=0.0)]
    assert compute_score(results) == 0.75
    again = [*scored(1, 1), *scored(0, 1, attempt=2)]
    assert (score_attempts(again), score_cases(again)) == ((1.0, 0.5), {"case0": 0.5, "case1": 1.0})


def test_metrics_are_the_means_of_their_checks() -> None:
    checks = (Check("contains", 1, "", ""), Check("contains", 0, "", ""), Check("exact", 1, "", ""))
    assert score_metrics([Result(id="a", agent="x", score=0.5, checks=checks)]) == {
        "contains": 0.5,
        "exact": 1.0,
    }


def test_a_difference_in_one_case_of_many_is_noise() -> None:
    found = compare(scored(*[1.0] * 10), scored(*[1.0] * 9, 0.0))
    assert (found.verdict, found.high) == ("within noise", 0.0)
    assert found.low < found.difference < 0
    assert [(change.id, change.before, change.after) for change in found.changed] == [
        ("case9", 1.0, 0.0)
    ]


def test_changes_that_point_both_ways_are_noise() -> None:
    assert (
        compare(scored(1, 0, 1, 0, 1, 0, 1, 0), scored(0, 1, 0, 1, 0, 1, 1, 1)).verdict
        == "within noise"
    )


def test_most_cases_worse_is_worse_and_the_other_way_round_better() -> None:
    good, bad = scored(*[1.0] * 10), scored(*[0.0] * 6, *[1.0] * 4)
    worse, better = compare(good, bad), compare(bad, good)
    assert (worse.verdict, better.verdict) == ("worse", "better")
    assert worse.high < 0 < better.low
    assert worse.before == 1.0
    assert worse.after == pytest.approx(0.4)


def test_a_few_cases_tell_nothing_for_certain() -> None:
    assert compare(scored(1, 1, 1, 1, 1), scored(0, 0, 0, 0, 0)).verdict == "within noise"
    assert compare(scored(1, 1, 1, 1, 1, 1), scored(0, 0, 0, 0, 0, 0)).verdict == "worse"


def test_a_few_cases_that_changed_may_be_chance_though_the_interval_leaves_out_0() -> None:
    found = compare(scored(*[1.0] * 6), scored(0, 0, 0, 1, 1, 1))
    assert (found.verdict, found.high < 0, found.chance) == ("within noise", True, 0.25)
    assert found.doubt == "so few cases changed that chance alone does as much in 25% of runs"
    assert (
        compare(scored(*[1.0] * 8), scored(*[0.0] * 6, 1, 1)).chance,
        compare(scored(1), scored(1)).doubt,
    ) == (2 / 64, "")


def test_what_did_not_change_seldom_looks_as_if_it_had() -> None:
    drawing = random.Random(7)
    found = [
        compute_chance(
            [((drawing.randint(0, 3) - drawing.randint(0, 3)) / 3, 1.0) for _ in range(8)]
        )
        for _ in range(400)
    ]
    assert 0 < sum(each <= 0.05 for each in found) <= 0.05 * len(found)


def test_chance_is_as_exact_with_many_cases_as_with_few() -> None:
    weighted = [(1.0, 2.0), (-0.5, 1.0), (1.0, 1.0)]
    assert (
        compute_chance(weighted) == 4 / 8
    )  # of 2.5: with these signs, with the second one turned, and both the other way
    many = [(1.0, 1.0)] * 10 + [(-1.0, 1.0)] * 4
    assert compute_chance(many) == pytest.approx(0.1796, abs=0.01)  # 2 P(X >= 10) of 14 tosses
    assert compute_chance(many) == compute_chance(many)


def test_nothing_is_different_from_itself() -> None:
    found = compare(scored(0.5, 1), scored(0.5, 1))
    assert (found.difference, found.low, found.high, found.changed) == (0.0, 0.0, 0.0, ())


def test_the_same_runs_always_give_the_same_interval() -> None:
    pairs = [(0.1 * number - 0.3, 1.0) for number in range(8)]
    assert compute_interval(pairs) == compute_interval(pairs)
    low, high = compute_interval(pairs)
    assert low < 0.05 < high


def test_cases_that_only_one_has_or_that_were_rewritten_are_left_out() -> None:
    found = compare(
        scored(1, 1, 1), [*scored(0, 1), Result(id="new", agent="a", score=0.0)], ["case0"]
    )
    assert (found.cases, found.only_before, found.only_after, found.rewritten) == (
        1,
        ("case2",),
        ("new",),
        ("case0",),
    )
    assert found.difference == 0.0


def test_runs_with_no_case_in_common_are_within_noise() -> None:
    found = compare(scored(1), [Result(id="other", agent="a", score=0.0)])
    assert (found.cases, found.verdict) == (0, "within noise")


def test_runs_are_compared_without_the_cases_that_were_rewritten(tmp_path: Path) -> None:
    def run(*cases: dict[str, Any]) -> EvaluationRun:
        path = dataset(tmp_path, *cases)
        made = EvaluationRun.begin(
            tmp_path / "output",
            path,
            read_dataset(path),
            Summary(dataset="d", started="now", service_version="1", options=Options(), agents={}),
        )
        for case in cases:
            made.add(Result(id=case["id"], agent="a", score=1.0))
        return made

    before = run({"id": "a", "input": "?", "tags": ["x"]}, {"id": "b", "input": "?"})
    after = run(
        {"id": "a", "input": "?", "source": "a.md", "agent": "other", "tool_results": []},
        {"id": "b", "input": "?!"},
    )
    found = compare_runs(before, after)
    assert (found.cases, found.rewritten) == (1, ("b",))


def test_few_cases_or_equal_ones_do_not_tell_how_certain_a_score_is() -> None:
    few = [Result(id=str(number), agent="a", score=number / 4) for number in range(MIN_CASES - 1)]
    equal = [Result(id=str(number), agent="a", score=1.0) for number in range(50)]
    assert compute_confidence(few) is None
    assert compute_confidence(equal) is None
    low, high = compute_confidence([*equal, Result(id="other", agent="a", score=0.0)]) or (0, 0)
    assert low < 50 / 51 < high


def test_cases_that_were_not_judged_in_one_of_the_runs_are_left_out() -> None:
    unknown = Check("g_eval", 0.0, "kind", "", not_judged="the judge is away")
    before, after = scored(1, 1, 1, 1, 1, 1), scored(0, 1, 1, 1, 1, 1)
    after[0] = msgspec.structs.replace(after[0], checks=(unknown,))
    found = compare(before, after)
    assert (found.cases, found.not_judged, found.difference) == (5, ("case0",), 0.0)
    assert compare(after, before).not_judged == ("case0",)
