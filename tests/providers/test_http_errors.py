"""Errors of providers over HTTP: their classes, and their messages without secrets."""

from typing import Any

import pytest

from ai_agent_service.core.errors import (
    ContextTooLongError,
    InvalidRequestError,
    ProviderRateLimitError,
    ProviderRefusedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ServiceError,
)
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from tests.support.fake_upstream import (
    DONE,
    END,
    Action,
    Upstream,
    delta,
    event,
    head,
    reply,
)
from tests.support.provider_requests import (
    HTML,
    KEY,
    failure,
    refusal,
    served,
)


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, InvalidRequestError, "provider_rejected_request"),
        (413, InvalidRequestError, "provider_rejected_request"),
        (422, InvalidRequestError, "provider_rejected_request"),
        (401, ProviderRefusedError, "provider_authentication_failed"),
        (403, ProviderRefusedError, "provider_authentication_failed"),
        (402, ProviderRefusedError, "provider_payment_required"),
        (404, ProviderRefusedError, "provider_model_not_found"),
        (408, ProviderTimeoutError, "provider_timeout"),
        (409, ProviderUnavailableError, "provider_unavailable"),
        (429, ProviderRateLimitError, "provider_rate_limited"),
        (500, ProviderUnavailableError, "provider_unavailable"),
        (504, ProviderTimeoutError, "provider_timeout"),
        (418, ProviderUnavailableError, "provider_unavailable"),
    ],
)
async def test_each_status_has_its_error_and_keeps_the_message(
    status: int, kind: type[ServiceError], code: str
) -> None:
    async with served(refusal(status, "The moon is in the way."), max_retries=0) as (_, provider):
        error = await failure(provider)
        assert (type(error), error.code, error.message) == (
            kind,
            code,
            "openai: The moon is in the way.",
        )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "Told."}}, "openai: Told."),
        ({"error": "Told."}, "openai: Told."),
        ({"message": "Told."}, "openai: Told."),
        ({"detail": "Told."}, "openai: Told."),
        ({"error": {"error": {"message": "Told\n  twice."}}}, "openai: Told twice."),
        ([{"error": {"code": 400, "message": "Told."}}], "openai: Told."),
        (b"Told.", "openai: Told."),
        (b"\xff\xfe", "openai: \ufffd\ufffd"),
        ({}, "openai answered with the status 400 and no explanation."),
        ([], "openai answered with the status 400 and no explanation."),
        (b"", "openai answered with the status 400 and no explanation."),
        (b"null", "openai answered with the status 400 and no explanation."),
        (b"[" * 60_000, "openai: " + "[" * 500 + "..."),
    ],
)
async def test_the_message_is_found_in_every_usual_form(body: object, message: str) -> None:
    async with served(reply(400, body)) as (_, provider):
        assert (await failure(provider)).message == message


@pytest.mark.parametrize(
    "body",
    [
        {
            "error": {
                "message": (
                    f"Incorrect API key provided: {KEY}. Header was 'Authorization: Bearer xyz'."
                )
            }
        },
        f"Incorrect API key provided: {KEY}; Bearer xyz".encode(),
        {"error": {"message": "x" * 490 + KEY + " Bearer xyz"}},
    ],
)
async def test_secrets_are_cut_from_the_message(body: object) -> None:
    async with served(reply(401, body)) as (_, provider):
        message = (await failure(provider)).message
        assert "xyz" not in message
        assert "sk-" not in message
        assert "canary" not in message
        assert "[redac" in message


async def test_a_secret_of_any_shape_is_cut_from_the_message() -> None:
    async with (
        Upstream(refusal(401, "The key 0123abcd is wrong.")) as upstream,
        HttpClient() as http,
    ):
        error = await failure(OpenAICompatible(http, base_url=upstream.url, api_key="0123abcd"))
        assert error.message == "openai: The key [redacted] is wrong."


@pytest.mark.parametrize("cut", [len(KEY) // 2, 4])
async def test_a_secret_that_arrives_in_two_pieces_is_cut_too(cut: int) -> None:
    whole = reply(401, f"Wrong key: {KEY}".encode(), content_type="text/plain")[0]
    assert isinstance(whole, bytes)
    async with served([whole[:-cut], 0.05, whole[-cut:]]) as (_, provider):
        assert (await failure(provider)).message == "openai: Wrong key: [redacted]"


@pytest.mark.parametrize(
    "page",
    [
        HTML,
        b"<!DOCTYPE html>\n<head><title>10.1.2.3</title></head>",
        b"\n<!-- " + b"x" * 600 + b"-->" + HTML,
    ],
)
async def test_a_page_of_html_is_not_echoed(page: bytes) -> None:
    async with served(reply(502, page, content_type="text/html"), max_retries=0) as (_, provider):
        error = await failure(provider)
        assert isinstance(error, ProviderUnavailableError)
        assert error.message == "openai answered with the status 502 and no explanation."


async def test_a_long_message_is_cut_at_500_characters() -> None:
    async with served(refusal(400, "x" * 100_000)) as (_, provider):
        assert (await failure(provider)).message.endswith("x...")
    async with served(refusal(400, "é" * 2_000)) as (_, provider):
        assert (await failure(provider)).message == f"openai: {'é' * 500}..."


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, {"message": "Too much.", "code": "context_length_exceeded"}),
        (
            400,
            {
                "message": (
                    "This model's maximum context length is 8192 tokens. However, your messages"
                    " resulted in 9000 tokens."
                )
            },
        ),
        (400, {"message": "prompt is too long: 208310 tokens > 200000 maximum"}),
        (413, {"message": "The request does not fit the context window."}),
        (
            400,
            {
                "message": (
                    "request (4390 tokens) exceeds the available context size (4096 tokens), try"
                    " increasing it"
                )
            },
        ),
        (
            500,
            {
                "code": 500,
                "message": "the request exceeds the available context size.",
                "type": "exceed_context_size_error",
            },
        ),
    ],
)
async def test_a_conversation_that_does_not_fit_is_told_apart(
    status: int, said: dict[str, Any]
) -> None:
    async with served(reply(status, {"error": said})) as (upstream, provider):
        error = await failure(provider)
        assert isinstance(error, ContextTooLongError)
        assert (error.code, error.param) == ("context_length_exceeded", "messages")
        assert error.message == f"openai: {said['message']}"
        assert len(upstream.requests) == 1, "the same conversation will not fit the second time"


@pytest.mark.parametrize("lead", [[], [event(delta(content="So far"))]], ids=["at once", "within"])
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"message": f"Overloaded {KEY}"}, ProviderUnavailableError),
        ("Overloaded", ProviderUnavailableError),
        ({"message": "Slow down.", "code": 429}, ProviderRateLimitError),
        ({"message": "Slow down.", "code": "429"}, ProviderRateLimitError),
        ({"message": "Slow down.", "code": "rate_limit_exceeded"}, ProviderRateLimitError),
        ({"message": "Slow down.", "code": "²"}, ProviderUnavailableError),
        ({"message": "Too much.", "code": "context_length_exceeded"}, ContextTooLongError),
        ({"message": "The maximum context length is 10 tokens.", "code": 400}, ContextTooLongError),
        ({"message": "The maximum context length is 10 tokens."}, ContextTooLongError),
        ({"code": 502, "metadata": {}}, ProviderUnavailableError),
    ],
)
async def test_an_error_within_a_good_answer_is_an_error(
    said: object, kind: type[ServiceError], lead: list[Action]
) -> None:
    broken = {"error": said, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}
    async with served([head(), *lead, event(broken), DONE, END]) as (upstream, provider):
        error = await failure(provider)
        assert type(error) is kind
        assert error.message.startswith("openai")
        assert KEY not in error.message
        assert len(upstream.requests) == 1
