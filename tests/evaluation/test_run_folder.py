"""The folder of a run: what is kept in it, and how it is found."""

from pathlib import Path

import pytest

from ai_agent_service.core.errors import ConfigError
from ai_agent_service.evaluation.dataset import read_dataset
from ai_agent_service.evaluation.results import Options, Result, Summary
from ai_agent_service.evaluation.run_folder import EvaluationRun, find_run
from tests.support.evaluation import dataset

SUMMARY = Summary(dataset="d", started="now", service_version="1", options=Options(), agents={})


def begun(folder: Path) -> EvaluationRun:
    path = dataset(folder, {"id": "a", "input": "é"}, {"id": "b", "input": "2"})
    return EvaluationRun.begin(folder / "output", path, read_dataset(path), SUMMARY)


def test_results_are_kept_as_they_come_and_read_in_the_datasets_order(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for name, attempt in (("b", 1), ("a", 2), ("a", 1)):
        run.add(Result(id=name, agent="x", attempt=attempt, score=1.0))
    assert [(result.id, result.attempt) for result in run.read_results()] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
    ]
    assert (run.read_summary(), run.read_cases()["a"]) == (SUMMARY, {"id": "a", "input": "é"})


def test_a_result_that_was_cut_off_is_taken_out(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.add(Result(id="a", agent="x", score=1.0))
    with (run.folder / "results.jsonl").open("ab") as file:
        file.write(b'{"id":"b","ag')
    assert [result.id for result in run.restore()] == ["a"]
    run.add(Result(id="b", agent="x", score=0.5))
    assert [(result.id, result.score) for result in run.read_results()] == [("a", 1.0), ("b", 0.5)]


def test_what_is_no_result_is_a_fault_of_its_line(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.add(Result(id="a", agent="x", score=1.0))
    with (run.folder / "results.jsonl").open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(ConfigError, match=r"results\.jsonl: line 2: this is no result"):
        run.read_results()


def test_a_run_is_found_by_its_name_its_beginning_its_path_and_as_the_latest(
    tmp_path: Path,
) -> None:
    output = tmp_path / "output"
    assert find_run(output, None) is None
    first, second = begun(tmp_path), begun(tmp_path)
    assert first.folder != second.folder
    for name in (second.name, str(second.folder), None):
        found = find_run(output, name)
        assert found is not None
        assert found.folder == max(second.folder, first.folder) if name is None else second.folder
    assert find_run(output, "2") is None
    assert find_run(output, "none") is None


def test_an_output_folder_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file", encoding="utf-8")
    with pytest.raises(ConfigError, match="EVALUATION_OUTPUT_DIR"):
        begun(tmp_path)
