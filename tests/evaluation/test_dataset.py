"""Datasets: what may stand in them, and that all that may not is told with its line and field."""

from pathlib import Path

import pytest

from ai_agent_service.core.errors import ConfigError
from ai_agent_service.evaluation.dataset import assign_agents, read_dataset
from tests.support.evaluation import dataset


def find_faults(path: Path) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        read_dataset(path)
    assert {fault.file for fault in caught.value.faults} == {str(path)}
    return [
        (fault.where, fault.field, f"{fault.problem}. {fault.remedy}")
        for fault in caught.value.faults
    ]


def test_a_case_has_one_turn_or_several(tmp_path: Path) -> None:
    one = {"id": "a", "input": "Hi", "expect": {"contains": "hello"}, "weight": 2, "tags": ["x"]}
    two = {
        "id": "b",
        "agent": "helper",
        "turns": [{"input": "I am Ada."}, {"input": "Who am I?", "expect": {"recalls": ["Ada"]}}],
    }
    first, second = read_dataset(dataset(tmp_path, one, "", two))
    assert (
        [turn.input for turn in first.session_turns],
        first.session_turns[0].expect.contains,
        first.weight,
        first.line,
    ) == (
        ["Hi"],
        ("hello",),
        2,
        1,
    )
    assert (
        [turn.input for turn in second.session_turns],
        second.session_turns[1].expect.recalls,
        second.line,
    ) == (
        ["I am Ada.", "Who am I?"],
        ("Ada",),
        3,
    )
    assert (first.tool_results, first.written) == (None, one)


def test_all_faults_are_told_at_once_with_line_and_field(tmp_path: Path) -> None:
    path = dataset(
        tmp_path,
        {"id": "a", "input": "Hi", "expct": {}},
        {"id": "a", "input": "Hi", "expect": {"containz": "x", "max_steps": 0}},
        '{"id": "c", "input": "Hi",}',
        '{"id": "d", "id": "d", "input": "Hi"}',
        "[]",
        {"input": "Hi"},
        {
            "id": "g",
            "input": "Hi",
            "expect": {
                "tools": [
                    {"name": "t", "argumnts": {}},
                    {"name": "t", "arguments": {"x": {"regex": "("}}},
                ]
            },
        },
        {"id": "h", "input": "Hi", "expect": {"regex": "(", "json_schema": {"type": "objekt"}}},
        {"id": "i", "input": "Hi", "tool_results": [{"name": "t", "conten": "x"}], "line": 3},
    )
    found = find_faults(path)
    assert [(where, field) for where, field, _ in found] == [
        ("line 1", "expct"),
        ("line 2", "expect.containz"),
        ("line 2", "expect.max_steps"),
        ("line 3, column 27", ""),
        ("line 4", "id"),
        ("line 5", ""),
        ("line 6", "id"),
        ("line 7", "expect.tools.0.argumnts"),
        ("line 7", "expect.tools.1.arguments"),
        ("line 8", "expect.json_schema"),
        ("line 8", "expect.regex"),
        ("line 9", "line"),
        ("line 9", "tool_results.0.conten"),
        ("line 9", "tool_results.0.content"),
    ]
    told = "\n".join(words for _, _, words in found)
    for remedy in (
        "Did you mean 'expect'?",
        "Did you mean 'contains'?",
        "Did you mean 'arguments'?",
        "Did you mean 'content'?",
    ):
        assert remedy in told
    assert "this field stands twice" in told
    assert "x: this is no regular expression" in told


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ({}, "either input or turns"),
        ({"input": "Hi", "turns": [{"input": "Hi"}]}, "either input or turns"),
        ({"turns": [{"input": "Hi"}], "expect": {}}, "expect stands in each of them"),
        ({"input": "Hi", "expect": {"recalls": "Ada"}}, "there is none before this one"),
        ({"input": ""}, "at least 1 character"),
        ({"input": "Hi", "weight": 0}, "greater than 0"),
    ],
)
def test_a_case_that_makes_no_sense_is_a_fault(
    tmp_path: Path, case: dict[str, object], problem: str
) -> None:
    [(where, _, words)] = find_faults(dataset(tmp_path, {"id": "a", **case}))
    assert (where, problem in words) == ("line 1", True)


@pytest.mark.parametrize(
    ("expect", "field", "told"),
    [
        (
            {"answer_relevancy": {"treshold": 1}},
            "answer_relevancy.treshold",
            "Did you mean 'threshold'?",
        ),
        (
            {"answer_relevancy": {"threshold": 1.5}},
            "answer_relevancy.threshold",
            "less than or equal to 1",
        ),
        (
            {"faithfulness": {"context": "x"}},
            "faithfulness.context",
            "Known are: penalize_ambiguous_claims, retrieval_context, threshold",
        ),
        ({"hallucination": {"context": [""]}}, "hallucination.context.0", "at least 1 character"),
        ({"task_completion": True}, "task_completion", "valid dictionary"),
        ({"g_eval": {"threshold": 0.5}}, "g_eval.0", "criteria or evaluation_steps is needed"),
        (
            {"g_eval": [{"criteria": "x"}, {"criterion": "x"}]},
            "g_eval.1.criterion",
            "Did you mean 'criteria'?",
        ),
        (
            {"g_eval": {"criteria": "x", "evaluation_params": ["inputs"]}},
            "g_eval.0.evaluation_params.0",
            "'input', 'actual_output'",
        ),
        (
            {"g_eval": {"criteria": "x", "evaluation_params": []}},
            "g_eval.0",
            "leave it out for what is usual",
        ),
        (
            {"g_eval": {"criteria": "x", "evaluation_params": ["context"]}},
            "g_eval.0",
            "context is given and named in",
        ),
        (
            {"g_eval": {"criteria": "x", "evaluation_params": ["input"], "expected_output": "y"}},
            "g_eval.0",
            "expected_output is given and",
        ),
        ({"tool_correctness": {}}, "tool_correctness.expected_tools", "this field is missing"),
        (
            {"tool_correctness": {"expected_tools": [{"nam": "x"}]}},
            "tool_correctness.expected_tools.0.nam",
            "Did you mean 'name'?",
        ),
        (
            {
                "tool_correctness": {
                    "expected_tools": [{"name": "x"}, {"name": "y", "arguments": {}}]
                }
            },
            "tool_correctness",
            "either all of expected_tools have arguments or none",
        ),
        (
            {
                "tool_correctness": {
                    "expected_tools": [],
                    "should_exact_match": True,
                    "should_consider_ordering": True,
                }
            },
            "tool_correctness",
            "leave should_consider_ordering out",
        ),
    ],
)
def test_what_is_to_be_judged_is_checked_as_all_else(
    tmp_path: Path, expect: dict[str, object], field: str, told: str
) -> None:
    found = find_faults(dataset(tmp_path, {"id": "a", "input": "Hi", "expect": expect}))
    assert (found[0][:2], told in found[0][2]) == (("line 1", f"expect.{field}"), True), found


def test_a_criterion_stands_alone_or_in_a_list(tmp_path: Path) -> None:
    one = {
        "id": "a",
        "input": "Hi",
        "expect": {"g_eval": {"criteria": "It is kind.", "context": "x"}},
    }
    two = {
        "id": "b",
        "input": "Hi",
        "expect": {"g_eval": [{"criteria": "It is kind."}, {"evaluation_steps": ["Read it."]}]},
    }
    first, second = (
        case.session_turns[0].expect.g_eval for case in read_dataset(dataset(tmp_path, one, two))
    )
    assert [(each.params, each.threshold) for each in first] == [
        (("input", "actual_output", "context"), 0.5)
    ]
    assert [each.evaluation_steps for each in second] == [(), ("Read it.",)]


def test_two_cases_with_one_id_are_a_fault(tmp_path: Path) -> None:
    [(where, field, words)] = find_faults(
        dataset(
            tmp_path,
            {"id": "a", "input": "1"},
            {"id": "b", "input": "2"},
            {"id": "a", "input": "3"},
        )
    )
    assert (where, field, "line 1" in words) == ("line 3", "id", True)


def test_a_file_that_is_empty_or_not_there_is_a_fault(tmp_path: Path) -> None:
    assert "there is no case in it" in find_faults(dataset(tmp_path))[0][2]
    assert "does not exist" in find_faults(tmp_path / "none.jsonl")[0][2]


def test_each_case_has_an_agent_that_there_is(tmp_path: Path) -> None:
    cases = read_dataset(
        dataset(tmp_path, {"id": "a", "input": "1"}, {"id": "b", "input": "2", "agent": "helpr"})
    )
    with pytest.raises(ConfigError) as caught:
        assign_agents(cases, None, ["helper"], "f")
    assert [(fault.where, fault.field) for fault in caught.value.faults] == [
        ("line 1", "agent"),
        ("line 2", "agent"),
    ]
    assert "Did you mean 'helper'?" in str(caught.value)
    assert [case.agent for case in assign_agents(cases, "other", ["helpr", "other"], "f")] == [
        "other",
        "helpr",
    ]
