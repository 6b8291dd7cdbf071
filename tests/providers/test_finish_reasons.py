"""What vendors' reasons for the end of an answer mean."""

import logging

import pytest

from ai_agent_service.core.errors import ProviderProtocolError
from ai_agent_service.providers.finish_reasons import (
    FINISH_REASONS,
    read_finish_reason,
    to_finish_reason,
)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("FinishReason.STOP", "stop"),
        ("eos_token", "stop"),
        ("MAX_TOKENS", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("SAFETY", "content_filter"),
        ("content_filter: RECITATION", "content_filter"),
        ("sensitive", "content_filter"),
        ("guardrail_intervened", "content_filter"),
        ("refusal", "content_filter"),
        ("content-filter", "content_filter"),
        ("contentFilter", "content_filter"),
        ("safety_violation", "content_filter"),
        ("max-tokens", "length"),
        ("context_window_exceeded", "length"),
        ("repetition_truncation", "length"),
        ("toolUse", "tool_calls"),
    ],
)
def test_a_reason_has_openais_name(said: str, meant: str) -> None:
    assert to_finish_reason(said, "wire") == meant


@pytest.mark.parametrize(
    "said",
    [
        "insufficient_system_resource",
        "network_error",
        "abort",
        "MALFORMED_FUNCTION_CALL",
        "function_call_filter: MALFORMED_FUNCTION_CALL",
        "engine_error",
        "user_cancelled",
        "request_timed_out_failed",
    ],
)
def test_a_reason_that_means_a_failure_is_an_error_with_its_name(said: str) -> None:
    with pytest.raises(
        ProviderProtocolError, match=f"^wire ended its answer with an error: {said}"
    ):
        to_finish_reason(said, "wire")


def test_an_unknown_reason_is_an_ordinary_end_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert to_finish_reason("because", "wire") == "stop"
    assert [record.message for record in caplog.records] == ["provider.unknown_finish_reason"]


def test_every_reason_of_the_table_has_one_meaning_in_lower_case() -> None:
    assert all(name == name.lower() for name in FINISH_REASONS)


@pytest.mark.parametrize("said", ["", "null", "NONE", " ", None, 0, False, True, {}, ["stop"]])
def test_what_names_no_reason_is_none(said: object) -> None:
    assert read_finish_reason(said) is None
