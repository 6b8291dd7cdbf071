"""Bins of histograms."""

import pytest

from ai_agent_service.evaluation.report.charts import MAX_BINS, bin_scores, bin_values


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [5.0, 5.0],
        [0.0, 1e9],
        [0.001, 0.0012, 3.7],
        [84.0, 84.0 + 1e-9],
        list(map(float, range(1000))),
    ],
)
def test_a_histogram_has_each_value_once_and_few_bins(values: list[float]) -> None:
    bins = bin_values(values)
    assert sum(found.count for found in bins) == len(values)
    assert len(bins) <= MAX_BINS
    assert bins[0].low <= min(values) <= max(values) <= bins[-1].high + 1e-9


def test_scores_of_1_have_a_bin_of_their_own() -> None:
    assert {
        found.label: found.count for found in bin_scores([0.0, 0.3, 0.95, 1.0, 1.0]) if found.count
    } == {
        "0 to below 0.1": 1,
        "0.3 to below 0.4": 1,
        "0.9 to below 1": 1,
        "1": 2,
    }
