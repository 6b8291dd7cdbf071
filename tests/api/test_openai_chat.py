"""POST /v1/chat/completions."""

from pathlib import Path

from app.server import create_app
from tests.scripted import Script, calls, says
from tests.service import chunks_of, client_of, configuration


async def test_a_tool_is_run_and_only_its_outcome_is_streamed(tmp_path: Path) -> None:
    script = Script(calls(("calculate", {"expression": "6*7"})), says("It is ", "42."))
    async with client_of(create_app(configuration(tmp_path, script))) as client:
        body = {"model": "helper", "stream": True, "messages": [{"role": "user", "content": "6*7?"}]}
        response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    chunks = chunks_of(response.text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "It is 42."
    assert not any("tool_calls" in chunk["choices"][0]["delta"] for chunk in chunks)
    assert script.requests[1].messages[-1].content == "42"
