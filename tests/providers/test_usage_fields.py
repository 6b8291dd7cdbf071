"""Tokens by every vendor's names and arithmetic."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.usage_fields import parse_usage
from tests.support.odd_json import odd_values


def openai(prompt: Any, completion: Any, total: Any = None, **parts: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": parts.get("cached")},
        "completion_tokens_details": {"reasoning_tokens": parts.get("reasoning")},
    }


@pytest.mark.parametrize(
    ("sent", "expected", "total"),
    [
        (openai(12, 342, 354, reasoning=340), Usage(12, 342, 0, 340), 354),
        # xAI: reasoning is beside the completion
        (openai(12, 2, 354, reasoning=340), Usage(12, 342, 0, 340), 354),
        (openai(12, 400, 752, reasoning=340), Usage(12, 740, 0, 340), 752),
        (openai(12, 2, reasoning=340), Usage(12, 342, 0, 340), 354),
        (openai(12, 2, 0, reasoning=340), Usage(12, 342, 0, 340), 354),
        # Gemini: the total has thoughts, and tokens of tools, that are in neither
        (openai(12, 2, 354), Usage(12, 2, other_tokens=340), 354),
        (openai(12, 2, 400, reasoning=340), Usage(12, 342, 0, 340, other_tokens=46), 400),
        (openai(100, 5, 105, cached=90), Usage(100, 5, 90), 105),
        # Anthropic: cached tokens are beside the prompt
        (
            {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 90},
            Usage(93, 5, 90),
            98,
        ),
        (openai(3, 5, 98, cached=90), Usage(93, 5, 90), 98),
        (openai(3, 5, 138, cached=90, reasoning=40), Usage(93, 45, 90, 40), 138),
        (openai(12, 2, 14, reasoning=340), Usage(12, 2, 0, 2), 14),
        (openai(None, None, 9), Usage(other_tokens=9), 9),
        (openai(12, 2, 5), Usage(12, 2), 14),
        # DeepSeek, Moonshot, Perplexity, Ollama
        (
            {"prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 8},
            Usage(10, 2, 8),
            12,
        ),
        ({"prompt_tokens": 10, "completion_tokens": 2, "cached_tokens": 8}, Usage(10, 2, 8), 12),
        (
            {"prompt_tokens": 1, "completion_tokens": 9, "reasoning_tokens": 8},
            Usage(1, 9, 0, 8),
            10,
        ),
        ({"prompt_eval_count": 26, "eval_count": 3}, Usage(26, 3), 29),
        (
            {
                "input_tokens": 5,
                "output_tokens": 6,
                "input_tokens_details": {"cached_tokens": 4},
                "output_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(5, 6, 4, 3),
            11,
        ),
        (openai("12", 2.0), Usage(12, 2), 14),
        ({"prompt_tokens": 12, "total_tokens": 14}, Usage(12, 2), 14),
        ({"completion_tokens": 2, "total_tokens": 14}, Usage(12, 2), 14),
        (openai("12.0", "x"), Usage(12), 12),
        (openai(-1, 5), Usage(0, 5), 5),
        (openai(True, 5, float("nan")), Usage(0, 5), 5),
        ({**openai(1, 2), "cost": "0.5"}, Usage(1, 2, cost=0.5), 3),
        ({**openai(1, 2), "cost": {}}, Usage(1, 2), 3),
        ({**openai(1, 2), "prompt_tokens_details": []}, Usage(1, 2), 3),
    ],
)
def test_tokens_are_counted_as_the_vendor_defines_them(
    sent: dict[str, Any], expected: Usage, total: int
) -> None:
    found = parse_usage(sent)
    assert found is not None
    assert (found, found.total_tokens) == (expected, total)


@pytest.mark.parametrize("sent", [None, {}, [], "", 7, True, "12", {"a": 1}, openai(None, "x")])
def test_what_has_no_count_is_no_usage(sent: Any) -> None:
    assert parse_usage(sent) is None


@given(st.dictionaries(st.sampled_from(list(openai(1, 2))), odd_values))
def test_any_values_give_counts_that_are_whole_and_consistent(sent: dict[str, Any]) -> None:
    found = parse_usage(sent)
    if found is not None:
        assert 0 <= found.cached_tokens <= found.prompt_tokens
        assert 0 <= found.reasoning_tokens <= found.completion_tokens
        assert found.total_tokens >= found.prompt_tokens + found.completion_tokens
        json.dumps(found.total_tokens)


def test_sums_add_what_is_in_no_part() -> None:
    assert Usage(1, 2, other_tokens=3) + Usage(4, 5, other_tokens=6) == Usage(5, 7, other_tokens=9)
