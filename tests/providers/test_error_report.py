"""Errors of providers in every envelope, read by their structure."""

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.errors import (
    InvalidRequestError,
    ProviderRateLimitError,
    ProviderRefusedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ServiceError,
)
from ai_agent_service.providers.error_report import is_error, read_error, read_title
from ai_agent_service.providers.http_errors import (
    HttpTarget,
    find_body_error,
    find_stream_error,
    parse_error,
    parse_stream_error,
)

TARGET = HttpTarget("openai", "http://h/v1", secrets=("0123abcd",), model="some-model")

RAW = {"message": "Provider returned error", "code": 502}
ENVELOPES: dict[str, Any] = {
    "openai": {"error": {"message": "Told.", "type": "server_error", "param": None, "code": None}},
    "anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "Told."}},
    "google": [
        {
            "error": {
                "code": 503,
                "message": "Told.",
                "status": "UNAVAILABLE",
                "details": [{"@type": "x", "reason": "y", "message": "Not this."}],
            }
        }
    ],
    "mistral": {"object": "error", "message": "Told.", "type": "internal_error", "code": "3000"},
    "mistral's validation": {
        "object": "error",
        "message": {"detail": [{"type": "missing", "loc": [], "msg": "Told."}]},
    },
    "ollama": {"error": "Told."},
    "a proxy of ollama": {"error": json.dumps({"error": {"message": "Told."}})},
    "cohere": {"id": "1", "message": "Told.", "code": "x"},
    "dashscope": {"code": "InternalError", "message": "Told.", "request_id": "1"},
    "zhipu": {"error": {"code": "1234", "message": "Told."}},
    "aws": {"__type": "com.amazon#InternalServerException", "message": "Told."},
    "aws with capitals": {"__type": "InternalServerException", "Message": "Told."},
    "azure": {"error": {"code": "500", "message": "Told.", "innererror": {"message": "No."}}},
    "azure's gateway": {"statusCode": 500, "message": "Told."},
    "minimax": {"base_resp": {"status_code": 1000, "status_msg": "Told."}},
    "fastapi": {"detail": "Told."},
    "fastapi's validation": {"detail": [{"loc": [], "msg": "Told.", "type": "missing"}]},
    "an object as detail": {"detail": {"error": {"message": "Told."}}},
    "oauth": {"error": "server_error", "error_description": "Told."},
    "spring": {"status": 500, "error": "Internal Server Error", "message": "Told."},
    "rfc 9457": {"type": "about:blank", "title": "Failed", "status": 500, "detail": "Told."},
    "cloudflare": {"success": False, "errors": [{"code": 1000, "message": "Told."}]},
    "texts": {"errors": ["Told."]},
    "a result": {"result": {"error": "Told."}},
    "data": {"data": {"error": {"message": "Told."}}},
    "apigee": {"fault": {"faultstring": "Told."}},
    "err": {"err": {"message": "Told."}},
    "baidu": {"error_code": 336000, "error_msg": "Told.", "error": True},
    "responses": {"type": "response.failed", "response": {"error": {"message": "Told."}}},
    "a choice": {"choices": [{"error": {"message": "Told."}, "finish_reason": "error"}]},
    "openrouter": {"error": {**RAW, "metadata": {"raw": "Told.", "provider_name": "Acme"}}},
    "openrouter's json": {
        "error": {**RAW, "metadata": {"raw": json.dumps({"error": {"message": "Told."}})}}
    },
    "openrouter's page": {"error": {**RAW, "metadata": {"raw": "<html><title>Told.</title>"}}},
}


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
def test_the_message_is_found_in_every_envelope(envelope: Any) -> None:
    error = find_stream_error(envelope, TARGET)
    assert isinstance(error, ProviderUnavailableError)
    assert error.message == "openai: Told."
    for body in (json.dumps(envelope), json.dumps(envelope, indent=2)):
        error = find_body_error(body.encode(), TARGET)
        assert error is not None
        assert error.message == "openai: Told."
        assert parse_error(500, {}, body.encode(), TARGET).message == "openai: Told."


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        "error",
        [],
        {},
        {"error": None},
        {"error": {}},
        {"choices": [{"delta": {"content": "error"}}], "error": None},
        {"choices": [{"delta": {}, "error": None}]},
        {"message": {"role": "assistant", "content": "Hi"}, "done": False},
        {"message": "Hi", "done": True, "type": "x"},
        {"object": "chat.completion.chunk", "choices": [], "usage": {"detail": "x"}},
        {"type": "response.created", "response": {"error": None}},
        {"type": "response.output_text.delta", "delta": "error"},
        {"base_resp": {"status_code": 0}, "choices": []},
        {"code": 0, "msg": "ok"},
        {"code": "200", "message": "Success"},
        {"type": "heartbeat", "message": "Still working."},
        {"status": "queued", "message": "Waiting in the queue."},
    ],
)
def test_a_part_of_an_answer_is_no_error(value: Any) -> None:
    assert find_stream_error(value, TARGET) is None


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"code": 429}, ProviderRateLimitError),
        ({"code": "429"}, ProviderRateLimitError),
        ({"status": 429}, ProviderRateLimitError),
        ({"status": "429 Too Many Requests"}, ProviderRateLimitError),
        ({"status_code": 429}, ProviderRateLimitError),
        ({"http_status": "429"}, ProviderRateLimitError),
        ({"type": "rate_limit_error"}, ProviderRateLimitError),
        ({"status": "RESOURCE_EXHAUSTED"}, ProviderRateLimitError),
        ({"__type": "com.amazon.coral#ThrottlingException:http://x"}, ProviderRateLimitError),
        ({"type": "overloaded_error"}, ProviderUnavailableError),
        ({"type": "authentication_error"}, ProviderRefusedError),
        ({"code": "insufficient_quota"}, ProviderRefusedError),
        ({"code": "insufficient_quota", "status": 429}, ProviderRefusedError),
        ({"type": "not_found_error", "code": 400}, ProviderRefusedError),
        ({"code": 402}, ProviderRefusedError),
        ({"code": "model_not_found"}, ProviderRefusedError),
        ({"type": "invalid_request_error"}, InvalidRequestError),
        ({"status": "INVALID_ARGUMENT", "code": 400}, InvalidRequestError),
        ({"status": "DEADLINE_EXCEEDED"}, ProviderTimeoutError),
        ({"code": 200}, ProviderUnavailableError),
        ({"code": True}, ProviderUnavailableError),
        ({"code": "²²²"}, ProviderUnavailableError),
        ({"code": 10**30}, ProviderUnavailableError),
    ],
)
def test_the_status_is_the_one_that_the_error_states(
    said: dict[str, Any], kind: type[ServiceError]
) -> None:
    assert type(parse_stream_error({"message": "Told.", **said}, TARGET)) is kind


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (
            400,
            {
                "message": (
                    "{'error': '/chat/completions: Invalid model name passed in model=x. Call"
                    " `/v1/models` to view available models for your key.'}"
                ),
                "type": "None",
                "param": "None",
                "code": "400",
            },
            "provider_model_not_found",
        ),
        (400, {"message": "Model Not Exist"}, "provider_model_not_found"),
        (400, {"message": "x is not a valid model ID", "code": 400}, "provider_model_not_found"),
        (429, {"message": "No.", "code": "insufficient_quota"}, "provider_payment_required"),
        (400, {"message": "Your credit balance is too low."}, "provider_payment_required"),
        (
            400,
            {"message": "API key not valid.", "details": [{"reason": "API_KEY_INVALID"}]},
            "provider_authentication_failed",
        ),
        (413, {"message": "No.", "code": "rate_limit_exceeded"}, "provider_rate_limited"),
        (500, {"message": "No.", "type": "rate_limit_error"}, "provider_rate_limited"),
        (401, {"message": "No.", "code": 500}, "provider_authentication_failed"),
        (429, {"message": "The context length.", "code": "x"}, "provider_rate_limited"),
        (400, {"message": "The image has no model."}, "provider_rejected_request"),
    ],
)
def test_a_general_status_gives_way_to_a_more_exact_one(
    status: int, error: dict[str, Any], code: str
) -> None:
    body = json.dumps({"error": error}).encode()
    assert parse_error(status, {}, body, TARGET).code == code


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            b'{"detail": [{"loc": ["body", "messages", 0], "msg": "Field required"}]}',
            "openai: body.messages.0: Field required",
        ),
        (b'event: error\ndata: {"error": {"message": "Told."}}\n\n', "openai: Told."),
        (b'data: {"message": "Told."}', "openai: Told."),
        (b"<?xml version='1.0'?><Error><Message>Told.</Message></Error>", '("Told.")'),
        (b'{"unknown": {"deep": "words"}}', "no explanation."),
    ],
)
def test_a_body_in_another_form_is_read_too(body: bytes, message: str) -> None:
    assert message in parse_error(400, {}, body, TARGET).message


def test_a_title_is_cleaned() -> None:
    assert read_title("<title>\n 502 &amp; <b>more</b> </title>") == "502 & more"
    assert read_title(f"<title>{'x' * 500}</title>") == "x" * 100
    assert read_title("<title>Bad gateway at 10.1.2.3</title>") == ""
    assert read_title("<p>nothing</p>") == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def list_places(value: Any) -> list[tuple[Any, ...]]:
    """Return the paths of all members in `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, ...]] = []
    for key, part in items:
        found.append((key,))
        if isinstance(part, dict | list):
            found += [(key, *path) for path in list_places(part)]
    return found


def list_texts(value: Any) -> list[str]:
    """Return all texts and numbers in `value`, and the names of its members."""
    match value:
        case dict():
            return [*value, *(text for part in value.values() for text in list_texts(part))]
        case list():
            return [text for part in value for text in list_texts(part)]
        case _:
            return [str(value)]


def replace(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """Return `value` with `part` at `path`."""
    if not path:
        return part
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replace(copy[path[0]], path[1:], part)
    return copy


@given(st.data(), st.sampled_from(list(ENVELOPES)), JSON)
def test_a_member_of_any_other_type_never_crashes_and_invents_no_message(
    data: st.DataObject, name: str, part: Any
) -> None:
    envelope = ENVELOPES[name]
    path = data.draw(st.sampled_from(list_places(envelope)))
    value = replace(envelope, path, part)
    is_error(value)
    find_stream_error(value, TARGET)
    text = json.dumps(value)
    find_body_error(text.encode(errors="surrogatepass"), TARGET)
    assert isinstance(parse_error(400, {}, text.encode(), TARGET), ServiceError)
    words = re.findall(r"\w+", read_error(value).message)
    assert set(words) <= set(re.findall(r"\w+", " ".join(list_texts(value))))


@given(st.binary())
def test_a_body_of_any_bytes_is_an_error_of_ours(body: bytes) -> None:
    find_body_error(body, TARGET)
    assert isinstance(parse_error(500, {}, body, TARGET), ServiceError)


HOSTILE = [
    *("<", "<title", "<title>", "<title>a</title ", "a", "0", "0,", ":", "!", " ", "a:", "1."),
    *("exceed", "fit ", "context length is too ", "maximum context length: ", "error! ", "model "),
]


@pytest.mark.parametrize("end", ["", "!x", "</title>"])
@pytest.mark.parametrize("begin", ["", "<html>", "<title>", "maximum context length"])
def test_an_error_of_any_length_is_read_at_once(begin: str, end: str) -> None:
    texts = [begin + (piece * 1_000_000)[:1_000_000] + end for piece in HOSTILE]
    started = time.process_time()
    for text in texts:
        find_body_error(text.encode(), TARGET)
        parse_stream_error({"error": {"message": text}}, TARGET)
        parse_error(404, {}, text.encode()[: 64 * 1024], TARGET)
    assert time.process_time() - started < 20, "three seconds on a machine at rest"
