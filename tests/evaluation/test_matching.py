"""How arguments are compared: by values and by matchers."""

import pytest

from ai_agent_service.evaluation.matching import find_matcher_fault, matches


@pytest.mark.parametrize(
    ("expected", "value", "same"),
    [
        ({"regex": "^a"}, "abc", True),
        ({"regex": "^b"}, "abc", False),
        ({"contains": "TOKYO"}, "Asia/Tokyo", True),
        ({"contains": "x"}, ["y", "x"], True),
        ({"any": True}, None, True),
        ({"number": 1, "tolerance": 0.1}, 1.05, True),
        ({"number": 1, "tolerance": 0.1}, 1.2, False),
        ({"number": 1, "tolerance": 0.1}, "1", False),
        ({"equals": {"regex": "x"}}, {"regex": "x"}, True),
        ({"a": {"regex": "x"}}, {"a": "xx"}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1, {"any": True}], [1, 2], True),
        ([1], [1, 2], False),
        (1, 1.0, True),
        (1, True, False),
    ],
)
def test_arguments_are_compared_by_values_and_matchers(
    expected: object, value: object, same: bool
) -> None:
    assert matches(expected, value) is same


@pytest.mark.parametrize(
    "wrong",
    [
        {"regex": "("},
        {"contains": 1},
        {"any": False},
        {"number": "1", "tolerance": 1},
        [{"a": {"regex": 1}}],
    ],
)
def test_a_matcher_that_cannot_match_is_a_fault(wrong: object) -> None:
    assert find_matcher_fault(wrong)
    assert find_matcher_fault({"equals": wrong}) is None
