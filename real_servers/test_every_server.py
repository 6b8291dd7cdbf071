"""What must work with every model server."""

import signal
from typing import Any

import pytest

from real_servers.conftest import Target, read_begin
from tests.support.clients import join_deltas, read_chunks, read_completion, read_error
from tests.support.openai_schema import checked_stream
from tests.support.processes import read_lines

STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def test_a_whole_answer_has_text_and_usage(target: Target) -> None:
    completion = read_completion(target.ask("short"))
    assert completion["choices"][0]["message"]["content"]
    assert completion["usage"]["prompt_tokens"] > 0
    assert completion["usage"]["completion_tokens"] > 0


def test_a_streamed_answer_has_text_and_usage(target: Target) -> None:
    chunks = read_chunks(target.ask("short", **STREAM))
    assert join_deltas(chunks)
    assert chunks[-1]["usage"]["prompt_tokens"] > 0
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_an_answer_is_complete_though_tools_are_offered(target: Target) -> None:
    completion = read_completion(target.ask("tools"))
    assert completion["choices"][0]["finish_reason"] in {"stop", "length"}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_requests_in_quick_succession_are_answered_without_a_retry(
    target: Target, is_streamed: bool
) -> None:
    """llama.cpp announces that it keeps connections and closes each after a stream."""
    retries = count_retries(target)
    for _ in range(60):
        response = target.ask("short", stream=is_streamed)
        assert response.status_code == 200, response.text
        assert '"error"' not in response.text
    assert count_retries(target) == retries


def test_a_server_that_is_killed_in_mid_answer_ends_it_with_an_error_and_answers_after_restart(
    target: Target,
) -> None:
    request = target.request("long", "Tell a long story.", stream=True)
    with target.client.stream("POST", "/v1/chat/completions", json=request) as response:
        pieces = response.iter_text()
        said = read_begin(pieces)
        target.server.end(signal.SIGKILL)
        said += "".join(pieces)
    _, error = checked_stream(said)
    assert error is not None
    assert error["code"] == "provider_protocol_error"
    assert read_error(target.ask("short"), 502)["code"] == "provider_unavailable"
    target.server.start()
    assert read_completion(target.ask("short"))["choices"][0]["message"]["content"]


def count_retries(target: Target) -> int:
    """Return how often the service retried a request to the model server."""
    return sum(line["event"] == "provider.retry" for line in read_lines(target.log))
