"""Data that a provider sent with a call."""

import time
from typing import Any

import pytest

from ai_agent_service.core.messages import ToolCall
from ai_agent_service.providers.provider_data import (
    add_provider_data,
    merge_members,
    read_provider_data,
)

CALL = ToolCall("c", "weather", "{}")


def test_data_is_read_by_its_provider_alone() -> None:
    call = add_provider_data(CALL, "google", "m", {"call": {"signature": "s"}, "message": {}})
    assert read_provider_data(call, "google") == {"call": {"signature": "s"}}
    assert read_provider_data(call, "google", "m") == {"call": {"signature": "s"}}
    assert read_provider_data(call, "google", "other") == {}
    assert read_provider_data(call, "openai") == {}


def test_a_call_without_data_stays_as_it_is() -> None:
    assert add_provider_data(CALL, "google", "m", {"call": {}, "message": None}) is CALL


def test_data_that_cannot_be_encoded_is_replaced() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    call = add_provider_data(CALL, "p", "m", {"a": "\ud83d\ude00\ud83d", "b": deep})
    assert read_provider_data(call, "p")["a"] == "\U0001f600\ufffd"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([("reasoning", "I "), ("reasoning", "see")], {"reasoning": "I see"}),
        ([("reasoning", "ha"), ("reasoning", "ha")], {"reasoning": "haha"}),
        ([("thought_signature", "a"), ("thought_signature", "a")], {"thought_signature": "a"}),
        # OpenRouter: pieces of one index, in order, beside the data of another
        (
            [
                ("reasoning_details", [{"type": "reasoning.text", "index": 0, "text": "I "}]),
                ("reasoning_details", [{"type": "reasoning.text", "index": 0, "text": "see"}]),
                (
                    "reasoning_details",
                    [
                        {"type": "reasoning.text", "index": 0, "signature": "sig", "text": None},
                        {"type": "reasoning.encrypted", "index": 1, "id": "a", "data": "AA"},
                    ],
                ),
                ("reasoning_details", [{"type": "reasoning.encrypted", "index": 1, "data": "BB"}]),
                ("reasoning_details", [{"type": "reasoning.encrypted", "index": 0, "data": "CC"}]),
            ],
            {
                "reasoning_details": [
                    {"type": "reasoning.text", "index": 0, "text": "I see", "signature": "sig"},
                    {"type": "reasoning.encrypted", "index": 1, "id": "a", "data": "AABB"},
                    {"type": "reasoning.encrypted", "index": 0, "data": "CC"},
                ]
            },
        ),
        # Encrypted data of two calls without an index of their own
        (
            [
                ("reasoning_details", [{"type": "reasoning.encrypted", "id": "a", "data": "A"}]),
                ("reasoning_details", [{"type": "reasoning.encrypted", "id": "b", "data": "B"}]),
            ],
            {
                "reasoning_details": [
                    {"type": "reasoning.encrypted", "id": "a", "data": "A"},
                    {"type": "reasoning.encrypted", "id": "b", "data": "B"},
                ]
            },
        ),
        # LiteLLM: a signature ends a block
        (
            [
                ("thinking_blocks", [{"type": "thinking", "thinking": "I "}]),
                ("thinking_blocks", [{"type": "thinking", "thinking": "see"}]),
                ("thinking_blocks", [{"type": "thinking", "thinking": "", "signature": "s"}]),
                ("thinking_blocks", [{"type": "thinking", "thinking": "Next"}]),
                ("thinking_blocks", [{"type": "redacted_thinking", "data": "AA"}]),
            ],
            {
                "thinking_blocks": [
                    {"type": "thinking", "thinking": "I see", "signature": "s"},
                    {"type": "thinking", "thinking": "Next"},
                    {"type": "redacted_thinking", "data": "AA"},
                ]
            },
        ),
        # Mistral: parts of thoughts
        (
            [
                ("content", [{"type": "thinking", "thinking": [{"type": "text", "text": "I "}]}]),
                ("content", [{"type": "thinking", "thinking": [{"type": "text", "text": "see"}]}]),
            ],
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "I see"}]}]},
        ),
        ([("reasoning", {"text": "I "}), ("reasoning", "see")], {"reasoning": "see"}),
        ([("a", [1]), ("a", [2, "x"])], {"a": [1, 2, "x"]}),
    ],
)
def test_pieces_of_members_are_put_together(
    pieces: list[tuple[str, Any]], expected: dict[str, Any]
) -> None:
    assert merge_members(pieces) == expected


def test_what_comes_in_one_piece_stays_unchanged() -> None:
    blocks = [{"index": 0, "text": "a"}, {"index": 0, "text": "b"}, 7, None]
    assert merge_members([("reasoning_details", blocks)]) == {"reasoning_details": blocks}


@pytest.mark.parametrize("kind", ["ids", "texts", "members", "lists"])
def test_many_pieces_take_time_in_proportion_to_their_number(kind: str) -> None:
    many = 20_000
    blocks: dict[str, list[dict[str, Any]]] = {
        "ids": [{"id": str(n)} for n in range(many)],
        "texts": [{"index": 0, "data": "x" * 2_000} for _ in range(many)],
        "members": [{"index": 0, str(n): 1} for n in range(many)],
        "lists": [{"index": n % 50, "summary": [n]} for n in range(many)],
    }
    began = time.process_time()
    merge_members(("reasoning_details", [block]) for block in blocks[kind])
    assert time.process_time() - began < 8, "a second on a machine at rest"
