"""llama.cpp with a real model: a small window, and one slot."""

import time

import httpx2

from real_servers.conftest import WINDOW, Target, read_begin
from tests.support.clients import read_completion

TURN = "Remember this list of words: " + "apple river stone " * 60
"""About 200 tokens: five turns exceed the window."""


def test_a_conversation_longer_than_the_window_goes_on(llama_target: Target) -> None:
    session = {"X-Session-Id": "long", "X-Session-History": "server"}
    prompt_tokens = 0
    for number in range(10):
        response = llama_target.client.post(
            "/v1/chat/completions",
            json=llama_target.request("memory", f"Turn {number}. {TURN}"),
            headers=session,
        )
        completion = read_completion(response)
        assert completion["choices"][0]["message"]["content"]
        prompt_tokens = completion["usage"]["prompt_tokens"]
    assert 0 < prompt_tokens < WINDOW


def test_a_client_that_leaves_frees_the_slot(llama_target: Target) -> None:
    request = llama_target.request("long", "Tell a long story.", stream=True)
    with llama_target.client.stream("POST", "/v1/chat/completions", json=request) as response:
        pieces = response.iter_text()  # kept, because its end would close the response
        read_begin(pieces)
        assert is_busy(llama_target)
    deadline = time.monotonic() + 3
    while is_busy(llama_target):
        assert time.monotonic() < deadline, "llama.cpp still generates"
        time.sleep(0.05)
    assert read_completion(llama_target.ask("short"))


def is_busy(target: Target) -> bool:
    """Return whether llama.cpp generates an answer now."""
    slots = httpx2.get(f"{target.server.url}/slots", timeout=10).raise_for_status().json()
    return any(slot["is_processing"] for slot in slots)
