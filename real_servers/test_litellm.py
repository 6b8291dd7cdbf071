"""LiteLLM's proxy, as OpenAI, as Azure with a dated API version, and as OpenRouter."""

import pytest

from real_servers.conftest import Target
from tests.support.clients import join_deltas, read_chunks, read_completion, read_error


def test_the_agents_own_tool_runs_and_its_result_reaches_the_model(proxy: Target) -> None:
    message = read_completion(proxy.ask("tools"))["choices"][0]["message"]
    assert message["content"] == "The tool said: 51"
    assert "tool_calls" not in message


def test_a_streamed_answer_follows_the_call_of_a_tool(proxy: Target) -> None:
    assert join_deltas(read_chunks(proxy.ask("tools", stream=True))) == "The tool said: 51"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_unknown_model_is_the_operators_to_correct(proxy: Target, is_streamed: bool) -> None:
    error = read_error(proxy.ask("unknown", stream=is_streamed), 424)
    assert error["code"] == "provider_model_not_found"
    assert "absent" in error["message"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_wrong_key_is_the_operators_to_correct(refused: Target, is_streamed: bool) -> None:
    error = read_error(refused.ask("short", stream=is_streamed), 424)
    assert error["code"] == "provider_authentication_failed"
    assert "sk-wrong" not in error["message"]
