"""Server of OpenAI's Responses API that follows a script, and refuses what OpenAI refuses."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.openai_schema import load_schemas, validate

_INPUT_SCHEMAS = {
    "message": "EasyInputMessage",
    "function_call": "FunctionToolCall",
    "function_call_output": "FunctionCallOutputItemParam",
    "reasoning": "ReasoningItem",
}


class Answer(msgspec.Struct):
    """One answer: its output in order, how it ends, and its tokens.

    An output is `("reasoning", summary)`, `("text", text)`, `("refusal", text)` or
    `("call", name, arguments)`.
    """

    output: tuple[tuple[str, ...], ...]
    status: str = "completed"
    reason: str | None = None
    error: dict[str, str] | None = None


def answers(*output: tuple[str, ...]) -> Answer:
    """Build a complete answer."""
    return Answer(output)


def build_events(answer: Answer, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of `answer` to the request `body`, which are valid."""
    server = ResponsesServer(answer)
    server.events = list(server._build_events(answer, body))
    server.check()
    return copy.deepcopy(server.events)


class Refusal(Exception):
    """An error response."""

    def __init__(self, message: str, status: int = 400, **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": fields.get("param"),
                "code": fields.get("code"),
            }
        }


class ResponsesServer:
    """Answers requests with the next of `script`, the last one repeatedly.

    `reasons` says whether the model reasons, `is_verified` whether the organization may have
    summaries.
    """

    def __init__(self, *script: Answer, reasons: bool = True, is_verified: bool = True) -> None:
        self.script = script
        self.reasons = reasons
        self.is_verified = is_verified
        self.requests: list[dict[str, Any]] = []
        """The bodies of all requests, those that were refused too."""
        self.refusals: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.app = Starlette(routes=[Route("/{path:path}", self._handle, methods=["POST"])])
        self._answered = 0
        self._numbers = count(1)
        self._encrypted: set[str] = set()
        self._reasoning_before: dict[str, str] = {}
        """The reasoning that led to an item, by the ids of both."""

    def forget_encryption(self) -> None:
        """Refuse the encrypted content of all reasoning so far."""
        self._encrypted.clear()

    def check(self) -> None:
        """Validate all events that were sent against OpenAI's schema."""
        assert self.events
        for event in self.events:
            validate(_find_event_schema(event["type"]), event)

    async def _handle(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        if not request.url.path.endswith("/responses"):
            return _refuse_chat()
        body = json.loads(await request.body())
        self.requests.append(body)
        try:
            self._check_request(body)
        except Refusal as refusal:
            self.refusals.append(str(refusal))
            return JSONResponse(refusal.body, refusal.status)
        answer = self.script[min(self._answered, len(self.script) - 1)]
        self._answered += 1
        events = list(self._build_events(answer, body))
        self.events += events
        if not body.get("stream"):
            return JSONResponse(events[-1]["response"])
        frames = (f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events)
        return StreamingResponse(iter(list(frames)), media_type="text/event-stream")

    def _check_request(self, body: dict[str, Any]) -> None:
        for name in body:
            if name not in _find_parameters():
                raise Refusal(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
        if isinstance(limit := body.get("max_output_tokens"), int) and limit < 16:
            raise Refusal(
                "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16.",
                param="max_output_tokens",
            )
        reasoning = body.get("reasoning") or {}
        if not self.reasons and "reasoning.encrypted_content" in body.get("include", ()):
            raise Refusal("Encrypted content is not supported with this model.", param="include")
        if not self.reasons and reasoning:
            raise Refusal(
                "Unsupported parameter: 'reasoning.effort' is not supported with this model.",
                param="reasoning.effort",
            )
        if reasoning.get("summary") and not self.is_verified:
            raise Refusal(
                "Your organization must be verified to generate reasoning summaries.",
                param="reasoning.summary",
                code="unsupported_value",
            )
        for tool in body.get("tools", ()):
            _check_tool(tool)
        items = body["input"]
        if isinstance(items, list):
            self._check_items(items, is_stored=body.get("store", True))

    def _check_items(self, items: list[dict[str, Any]], *, is_stored: bool) -> None:
        calls: set[str] = set()
        outputs = {each.get("call_id") for each in items if each["type"] == "function_call_output"}
        for place, item in enumerate(items):
            is_sent_back = item["type"] == "message" and "id" in item
            validate("OutputMessage" if is_sent_back else _INPUT_SCHEMAS[item["type"]], item)
            before = items[place - 1] if place else {}
            after = items[place + 1] if place + 1 < len(items) else {}
            match item["type"]:
                case "function_call":
                    calls.add(item["call_id"])
                    self._check_reasoning_before(item, before)
                    if item["call_id"] not in outputs:
                        raise Refusal(f"No tool output found for function call {item['call_id']}.")
                case "message" if "id" in item:
                    self._check_reasoning_before(item, before)
                case "function_call_output" if item["call_id"] not in calls:
                    raise Refusal(
                        "No tool call found for function call output with call_id"
                        f" {item['call_id']}."
                    )
                case "reasoning":
                    self._check_reasoning(item, after, is_stored=is_stored)
                case _:
                    pass

    def _check_reasoning_before(self, item: dict[str, Any], before: dict[str, Any]) -> None:
        wanted = self._reasoning_before.get(item.get("id", ""))
        if wanted is not None and before.get("id") != wanted:
            raise Refusal(
                f"Item '{item['id']}' of type '{item['type']}' was provided without its required"
                f" 'reasoning' item: '{wanted}'.",
                param="input",
            )

    def _check_reasoning(
        self, item: dict[str, Any], after: dict[str, Any], *, is_stored: bool
    ) -> None:
        encrypted = item.get("encrypted_content")
        if not encrypted and not is_stored:
            raise Refusal(
                f"Item with id '{item['id']}' not found. Items are not persisted when `store` is"
                " set to false. Try again with `store` set to true, or remove this item from your"
                " input.",
                404,
                param="input",
            )
        if encrypted and encrypted not in self._encrypted:
            raise Refusal(
                f"The encrypted content {encrypted[:4]}... could not be verified.",
                code="invalid_encrypted_content",
            )
        if self._reasoning_before.get(after.get("id", "")) != item["id"]:
            raise Refusal(
                f"Item '{item['id']}' of type 'reasoning' was provided without its required"
                " following item.",
                param="input",
            )

    def _build_events(self, answer: Answer, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        sequence = count()

        def event(name: str, /, **fields: Any) -> dict[str, Any]:
            return {"type": f"response.{name}", "sequence_number": next(sequence), **fields}

        response = self._build_response(body)
        yield event("created", response=response)
        yield event("in_progress", response=response)
        output: list[dict[str, Any]] = []
        for place, part in enumerate(answer.output):
            item = self._build_item(part, body)
            if output and output[-1]["type"] == "reasoning":
                self._reasoning_before[item["id"]] = output[-1]["id"]
            output.append(item)
            yield event("output_item.added", output_index=place, item=_open_item(item))
            for name, fields in _build_parts(item):
                yield event(name, output_index=place, item_id=item["id"], **fields)
            yield event("output_item.done", output_index=place, item=item)
        details = {"reason": answer.reason} if answer.reason else None
        ended = {
            **response,
            "status": answer.status,
            "output": output,
            "usage": _USAGE,
            "incomplete_details": details,
            "error": answer.error,
        }
        yield event(answer.status, response=ended)

    def _build_response(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"resp_{next(self._numbers)}",
            "object": "response",
            "created_at": 1_800_000_000,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "model": body["model"],
            "output": [],
            "parallel_tool_calls": True,
            "metadata": {},
            "tools": [],
            "tool_choice": "auto",
            "temperature": 1.0,
            "top_p": 1.0,
        }

    def _build_item(self, part: tuple[str, ...], body: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        match part:
            case ("reasoning", summary):
                wanted = (body.get("reasoning") or {}).get("summary")
                item = {
                    "type": "reasoning",
                    "id": f"rs_{number}",
                    "summary": [
                        {"type": "summary_text", "text": text}
                        for text in (summary.split("\n\n") if summary and wanted else ())
                    ],
                }
                if "reasoning.encrypted_content" in (body.get("include") or ()):
                    item["encrypted_content"] = f"gAAA{number}=="
                    self._encrypted.add(f"gAAA{number}==")
                return item
            case ("call", name, arguments):
                return {
                    "type": "function_call",
                    "id": f"fc_{number}",
                    "call_id": f"call_{number:012}",
                    "name": name,
                    "arguments": arguments,
                    "status": "completed",
                }
            case (kind, text):
                content = (
                    {"type": "refusal", "refusal": text}
                    if kind == "refusal"
                    else {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
                )
                return {
                    "type": "message",
                    "id": f"msg_{number}",
                    "role": "assistant",
                    "status": "completed",
                    "content": [content],
                }
            case _:
                raise AssertionError(part)


def _refuse_chat() -> Response:
    """Return the answer to tools on chat completions."""
    refusal = Refusal(
        "Function tools with reasoning_effort are not supported for gpt-6 in /v1/chat/completions."
        " To use function tools, use /v1/responses or set reasoning_effort to 'none'.",
        param="reasoning_effort",
    )
    return JSONResponse(refusal.body, refusal.status)


_USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
    "output_tokens": 10,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 30,
}


def _open_item(item: dict[str, Any]) -> dict[str, Any]:
    """Return `item` as it is when it is added."""
    emptied: dict[str, dict[str, Any]] = {
        "function_call": {"arguments": ""},
        "message": {"content": []},
    }
    status = {} if item["type"] == "reasoning" else {"status": "in_progress"}
    return {**item, **emptied.get(item["type"], {"summary": []}), **status}


def _build_parts(item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names and fields of the events between an item's addition and its end."""
    match item["type"]:
        case "reasoning":
            for place, part in enumerate(item["summary"]):
                fields = {"summary_index": place}
                yield (
                    "reasoning_summary_part.added",
                    {**fields, "part": {**part, "text": ""}},
                )
                for piece in _cut(part["text"]):
                    yield "reasoning_summary_text.delta", {**fields, "delta": piece}
                yield "reasoning_summary_text.done", {**fields, "text": part["text"]}
                yield "reasoning_summary_part.done", {**fields, "part": part}
        case "function_call":
            for piece in _cut(item["arguments"]):
                yield "function_call_arguments.delta", {"delta": piece}
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield "function_call_arguments.done", done
        case _:
            [part] = item["content"]
            kind = "refusal" if part["type"] == "refusal" else "text"
            name = "refusal" if kind == "refusal" else "output_text"
            more: dict[str, Any] = {} if kind == "refusal" else {"logprobs": []}
            fields = {"content_index": 0}
            yield "content_part.added", {**fields, "part": {**part, kind: ""}}
            for piece in _cut(part[kind]):
                yield f"{name}.delta", {**fields, "delta": piece, **more}
            yield f"{name}.done", {**fields, kind: part[kind], **more}
            yield "content_part.done", {**fields, "part": part}


def _cut(text: str) -> Iterator[str]:
    for start in range(0, len(text), 4):
        yield text[start : start + 4]


def _check_tool(tool: dict[str, Any]) -> None:
    validate("FunctionTool", {"strict": None, **tool})
    if tool.get("strict", True):
        schema = tool["parameters"]
        missing = sorted(set(schema.get("properties", {})) - set(schema.get("required", ())))
        if missing or schema.get("additionalProperties") is not False:
            raise Refusal(
                f"Invalid schema for function '{tool['name']}': In context=(), 'required' is"
                " required to be supplied and to be an array including every key in properties."
                f" Missing '{next(iter(missing), '')}'.",
                code="invalid_function_parameters",
            )


@cache
def _find_parameters() -> frozenset[str]:
    """Return the parameters of a request."""

    def collect(schema: dict[str, Any]) -> set[str]:
        found = set(schema.get("properties", ()))
        for part in schema.get("allOf", ()):
            name = part.get("$ref", "").rpartition("/")[2]
            found |= collect(load_schemas()[name] if name else part)
        return found

    return frozenset(collect(load_schemas()["CreateResponse"]))


@cache
def _find_event_schema(name: str) -> str:
    """Return the name of the schema of events of this type."""
    found = [
        title
        for title, schema in load_schemas().items()
        if title.endswith("Event")
        and schema.get("properties", {}).get("type", {}).get("enum") == [name]
    ]
    assert len(found) == 1, (name, found)
    return found[0]
