"""Repair what MCP servers send before the library, which refuses a whole message, reads it.

One odd part costs that part only. A message keeps its id, and an error its words.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from mcp_types import INTERNAL_ERROR, PARSE_ERROR, Tool
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.mcp.base import RemoteTool

NOT_AN_OBJECT = "ai-agent-service/not-an-object"
"""The member that holds a result which is not an object, as each result must be."""

RAW = "ai-agent-service/raw"
"""The member of a tool's `_meta` that holds the tool as its server describes it."""

MAX_ERROR_WORDS = 4_000

_Message = dict[str, Any]
_RequestId = int | str


def parse_json(text: str | bytes) -> object:
    """Return the JSON value of `text`, whose invalid UTF-8 is replaced; raises ValueError."""
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig", errors="replace")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dump_json(value: object) -> str:
    """Return `value` as JSON in ASCII."""
    return json.dumps(_clean_texts(value), separators=(",", ":"))


def repair_messages(value: object, request_id: _RequestId | None = None) -> list[_Message]:
    """Return the JSON-RPC messages that `value` is, or has in a list; none if it is no message.

    An answer without a usable id gets `request_id`, the request that it answers as far as the
    transport knows.
    """
    if isinstance(value, list):
        return [each for entry in value for each in repair_messages(entry, request_id)]
    if not isinstance(value, dict):
        return []
    if isinstance(value.get("method"), str):
        return [_repair_request(value)]
    if not (value.keys() & {"result", "error"} or ("jsonrpc" in value and "id" in value)):
        return []
    head = {"jsonrpc": "2.0", "id": _read_id(value.get("id"), request_id)}
    if (error := value.get("error")) is not None or "result" not in value:
        return [{**head, "error": repair_error(error)}]
    result = value["result"]
    if result is None:
        result = {}
    return [{**head, "result": result if isinstance(result, dict) else {NOT_AN_OBJECT: result}}]


def build_error(request_id: _RequestId | None, words: str) -> _Message:
    """Return the message that fails the request because its answer cannot be read."""
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": PARSE_ERROR, "message": words}}


def repair_error(error: object) -> dict[str, Any]:
    """Return the error of a message with a code and a message."""
    if not isinstance(error, dict):
        words = _describe(error) or "the answer has neither a result nor an error"
        return {"code": INTERNAL_ERROR, "message": words}
    code = _read_integer(error.get("code"))
    words = _describe(error.get("message")) or _describe(error.get("data"))
    if code is None and (name := _describe(error.get("code"))):
        words = f"{words} ({name})" if words else name
    found = {
        "code": INTERNAL_ERROR if code is None else code,
        "message": words or "the server did not say why",
    }
    return {**found, "data": error["data"]} if "data" in error else found


def repair_result(method: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of `method` in a form that the library takes at every protocol version."""
    repair = _RESULTS.get(method)
    return dict(raw) if repair is None else repair(dict(raw))


def read_tool(tool: Tool) -> RemoteTool:
    """Return the tool that `_repair_tool` carried through the library."""
    entry = (tool.meta or {}).get(RAW, {})
    notes = entry.get("annotations")
    titles = (entry.get("title"), notes.get("title") if isinstance(notes, dict) else None)
    texts = (each for each in (entry.get("description"), *titles) if isinstance(each, str))
    execution = entry.get("execution")
    problem = ""
    if not tool.name:
        problem = "an entry of its list has no name"
    elif isinstance(execution, dict) and execution.get("taskSupport") == "required":
        problem = f"the tool {tool.name!r} runs only as a task, which is not supported"
    description = next(filter(None, texts), "")
    return RemoteTool(tool.name, description, entry.get("inputSchema"), problem)


def _repair_request(message: _Message) -> _Message:
    """Return a server's request or notification."""
    found: _Message = {"jsonrpc": "2.0", "method": message["method"]}
    if (request_id := _read_id(message.get("id"), None)) is not None:
        found["id"] = request_id
    if isinstance(params := message.get("params"), dict):
        found["params"] = params
    return found


def _read_id(value: object, default: _RequestId | None) -> _RequestId | None:
    if default is not None:
        return default
    if isinstance(value, str):
        return value
    return _read_integer(value)


def _read_integer(value: object) -> int | None:
    """Return a whole number, which may be written as text or with a fraction."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
        return int(value) if isinstance(value, int | str) else int(number)
    except (ValueError, OverflowError):
        return None


def _describe(value: object) -> str:
    """Return a member that should be a text as words."""
    if value is None or value in ("", [], {}):
        return ""
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return words.strip()[:MAX_ERROR_WORDS]


def _repair_initialize(raw: dict[str, Any]) -> dict[str, Any]:
    """Keep what is used of `initialize`. A server that does not say what it can do may have tools,
    and one that names no version speaks the one that was requested."""
    version, info = raw.get("protocolVersion"), raw.get("serverInfo")
    info = info if isinstance(info, dict) else {}
    found = {
        "protocolVersion": version if isinstance(version, str) else LATEST_HANDSHAKE_VERSION,
        "capabilities": _repair_capabilities(raw.get("capabilities")),
        "serverInfo": {name: _describe(info.get(name)) for name in ("name", "version")},
    }
    if isinstance(text := raw.get("instructions"), str):
        found["instructions"] = text
    return found


def _repair_capabilities(value: object) -> dict[str, Any]:
    value = {} if value == [] else value
    tools = value.get("tools") if isinstance(value, dict) else {}
    if tools is None or tools is False:
        return {}
    changes = isinstance(tools, dict) and tools.get("listChanged") is True
    return {"tools": {"listChanged": True} if changes else {}}


def _repair_tool_list(raw: dict[str, Any]) -> dict[str, Any]:
    """Keep each entry, and the entry as the server wrote it in its `_meta`."""
    entries = raw.get("tools", raw.get(NOT_AN_OBJECT))
    found: dict[str, Any] = {
        "tools": [_repair_tool(entry) for entry in entries] if isinstance(entries, list) else [],
        **_CACHE_HINTS,
    }
    cursor = raw.get("nextCursor")
    if isinstance(cursor, int) and not isinstance(cursor, bool):
        cursor = str(cursor)
    if isinstance(cursor, str) and cursor:
        found["nextCursor"] = cursor
    return found


def _repair_tool(entry: object) -> dict[str, Any]:
    """Return the least of a tool that the library reads: its name and where its arguments go."""
    entry = entry if isinstance(entry, dict) else {}
    schema, name = entry.get("inputSchema"), entry.get("name")
    schema = schema if isinstance(schema, dict) else {}
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    kept = {key: value for key, value in schema.items() if key not in ("$schema", "required")}
    is_schema = (dict, bool)
    return {
        "name": name if isinstance(name, str) else "",
        "inputSchema": {
            **kept,
            "type": "object",
            "properties": {
                k: each for k, each in properties.items() if isinstance(each, is_schema)
            },
        },
        "_meta": {RAW: entry},
    }


def _repair_call(raw: dict[str, Any]) -> dict[str, Any]:
    """Carry the result through the library as structured content, which it does not look into;
    `to_tool_output` reads it."""
    if raw.get("resultType") == "input_required":
        return raw
    return {"content": [], "structuredContent": raw, "resultType": "complete"}


_CACHE_HINTS = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}

_RESULTS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "initialize": _repair_initialize,
    "ping": lambda _: {"resultType": "complete"},
    "tools/list": _repair_tool_list,
    "tools/call": _repair_call,
}


def _clean_texts(value: Any) -> Any:
    """Return `value` without NUL and lone surrogates, which strict readers refuse."""
    match value:
        case str():
            return replace_unstorable(value)
        case dict():
            return {replace_unstorable(key): _clean_texts(item) for key, item in value.items()}
        case list():
            return [_clean_texts(item) for item in value]
        case _:
            return value
