"""Does with a stream what Open WebUI (0.12) does, by the rules of its `utils/response.py` and
`utils/misc.py`."""

from typing import Any

Item = dict[str, Any]


def build_output(chunks: list[dict[str, Any]]) -> list[Item]:
    """Return the items that it stores of a streamed answer, in its order."""
    output: list[Item] = []
    for chunk in chunks:
        if chunk.get("type") == "response.output_item.added":
            _add(output, chunk["item"], chunk["output_index"])
        for choice in chunk["choices"]:
            for field, kind in (("reasoning_content", "reasoning"), ("content", "message")):
                if text := choice["delta"].get(field):
                    if not output or output[-1]["type"] != kind:
                        output.append(
                            {"type": kind, "content": [{"type": "output_text", "text": ""}]}
                        )
                    output[-1]["content"][0]["text"] += text
    return output


def _add(output: list[Item], item: Item, index: int) -> None:
    for place, existing in enumerate(output):
        same_call = (
            item.get("call_id")
            and existing["type"] == item["type"]
            and existing.get("call_id") == item["call_id"]
        )
        if same_call or (item.get("id") and existing.get("id") == item["id"]):
            output[place] = item
            return
    output.insert(index, item)


def replayed(output: list[Item]) -> list[dict[str, Any]]:
    """Return the messages that it sends of a stored answer with the next question."""
    results = {item["call_id"] for item in output if item["type"] == "function_call_output"}
    done = {
        item["call_id"]
        for item in output
        if item["type"] == "function_call" and item["status"] in ("completed", "failed", "rejected")
    } & results
    messages: list[dict[str, Any]] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []

    def flush() -> None:
        if texts or calls:
            message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
            messages.append({**message, "tool_calls": list(calls)} if calls else message)
            texts.clear()
            calls.clear()

    for item in output:
        match item["type"]:
            case "message":
                if calls:
                    flush()
                texts.append(item["content"][0]["text"])
            case "function_call" if item["call_id"] in done:
                function = {"name": item["name"], "arguments": item["arguments"]}
                calls.append({"id": item["call_id"], "type": "function", "function": function})
            case "function_call_output" if item["call_id"] in done:
                flush()
                messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": item["call_id"],
                        "content": item["output"][0]["text"],
                    }
                )
            case _:
                pass
    flush()
    return messages


def unanswered(output: list[Item]) -> list[str]:
    """Return the names of calls that it would run itself before asking the model again."""
    results = {item["call_id"] for item in output if item["type"] == "function_call_output"}
    return [
        item["name"]
        for item in output
        if item["type"] == "function_call" and item["call_id"] not in results
    ]


def find_events(chunks: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the data of the events of this type, in order."""
    return [
        chunk["event"]["data"] for chunk in chunks if chunk.get("event", {}).get("type") == kind
    ]
