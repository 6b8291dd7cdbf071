"""Answers of LiteLLM's model `tools`: it calls the agent's tool once, and then repeats the result.

LiteLLM imports this file from the folder of its configuration. The `mock_tool_calls` of a
configuration have no effect on streamed answers.
"""

from typing import Any

from litellm.integrations.custom_logger import CustomLogger
from litellm.types.utils import ModelResponse

CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "calculate", "arguments": '{"expression": "17 * 3"}'},
}


class Answers(CustomLogger):  # type: ignore[misc]  # LiteLLM is not installed for mypy
    """Set the mock answer before LiteLLM routes the request."""

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        if data.get("model") != "tools":
            return data
        last = data["messages"][-1]
        if last["role"] == "tool":
            return {**data, "mock_response": f"The tool said: {last['content']}"}
        assert any(tool["function"]["name"] == "calculate" for tool in data["tools"])
        message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
        return {**data, "mock_response": ModelResponse(choices=[choice])}


answers = Answers()
