"""Errors of providers over HTTP: their classes, and their messages without secrets."""

from typing import Any

import pytest

from ai_agent_service.core.errors import (
    ContextTooLongError,
    InvalidRequestError,
    ProviderProtocolError,
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
    setup,
)

LEADS = {
    402: "The provider openai wants payment from this service:",
    403: "The provider openai refused access to this service:",
}


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, InvalidRequestError, "provider_rejected_request"),
        (413, InvalidRequestError, "provider_rejected_request"),
        (422, InvalidRequestError, "provider_rejected_request"),
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
        lead = LEADS.get(status, "openai:")
        assert (type(error), error.code) == (kind, code)
        assert error.message == f"{lead} The moon is in the way."


async def test_a_rejected_key_is_the_operators_and_its_details_are_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(refusal(401, f"Incorrect API key provided: {KEY}.")) as (upstream, provider):
        error = await failure(provider)
        assert error.message == (
            "The provider openai rejected this service's API key. Ask the operator to check it."
        )
        assert (error.status, dict(error.headers)) == (424, {"x-should-retry": "false"})
        assert len(upstream.requests) == 1
    said = [vars(record)["said"] for record in caplog.records if "key_rejected" in record.message]
    assert said == ["Incorrect API key provided: [redacted]."]


async def test_an_unknown_model_is_named() -> None:
    body = {"error": {"message": "The model does not exist.", "code": "model_not_found"}}
    async with served(reply(404, body)) as (_, provider):
        assert (await failure(provider)).message == (
            "openai does not know the model 'some-model': The model does not exist."
        )


@pytest.mark.parametrize(
    "body",
    [b"404 page not found", {"detail": "Not Found"}, {"error": "Invalid URL (POST /v1/v1)"}, HTML],
)
@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1", "Check OPENAI_BASE_URL."),
        ("", "Check OPENAI_BASE_URL: it usually ends with /v1."),
    ],
)
async def test_an_address_that_the_server_does_not_have_is_named(
    body: object, path: str, hint: str
) -> None:
    async with Upstream(reply(404, body)) as upstream, HttpClient() as http:
        provider = OpenAICompatible.from_setup(setup(http, openai_base_url=upstream.url + path))
        error = await failure(provider)
        assert (error.code, error.message[-len(hint) :]) == ("provider_model_not_found", hint)


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
        (b"", "openai answered with the status 400 and an empty body."),
        (b" \r\n", "openai answered with the status 400 and an empty body."),
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
                "message": (f"Not for this key: {KEY}. Header was 'Authorization: Bearer xyz'.")
            }
        },
        f"Not for this key: {KEY}; Bearer xyz".encode(),
        {"error": {"message": "x" * 490 + KEY + " Bearer xyz"}},
    ],
)
async def test_secrets_are_cut_from_the_message(body: object) -> None:
    async with served(reply(403, body)) as (_, provider):
        message = (await failure(provider)).message
        assert "xyz" not in message
        assert "sk-" not in message
        assert "canary" not in message
        assert "[redac" in message


async def test_a_secret_of_any_shape_is_cut_from_the_message() -> None:
    async with (
        Upstream(refusal(403, "The key 0123abcd is wrong.")) as upstream,
        HttpClient() as http,
    ):
        error = await failure(OpenAICompatible(http, base_url=upstream.url, api_key="0123abcd"))
        assert error.message.endswith(": The key [redacted] is wrong.")


@pytest.mark.parametrize("cut", [len(KEY) // 2, 4])
async def test_a_secret_that_arrives_in_two_pieces_is_cut_too(cut: int) -> None:
    whole = reply(403, f"Wrong key: {KEY}".encode(), content_type="text/plain")[0]
    assert isinstance(whole, bytes)
    async with served([whole[:-cut], 0.05, whole[-cut:]]) as (_, provider):
        assert (await failure(provider)).message.endswith(": Wrong key: [redacted]")


@pytest.mark.parametrize(
    ("page", "title"),
    [
        (HTML, ""),
        (b"<!DOCTYPE html>\n<head><title>10.1.2.3</title></head>", ""),
        (b"<!DOCTYPE html>\n<title>\n502  Bad &amp; sad\n</title>", ' ("502 Bad & sad")'),
        (b"\n<!-- " + b"x" * 600 + b"-->" + HTML, ""),
    ],
)
@pytest.mark.parametrize("status", [200, 502])
async def test_of_a_page_of_html_only_the_title_is_repeated(
    page: bytes, title: str, status: int
) -> None:
    async with served(reply(status, page, content_type="text/html"), max_retries=0) as (
        _,
        provider,
    ):
        error = await failure(provider)
        kind = ProviderProtocolError if status == 200 else ProviderUnavailableError
        assert type(error) is kind
        assert error.message == (
            f"openai answered with the status {status} and an HTML page{title} in place of an"
            " API's answer."
        )


async def test_a_page_that_refuses_is_named_as_one() -> None:
    page = b"<!DOCTYPE html><title>Just a moment...</title>"
    async with served(reply(403, page, content_type="text/html")) as (_, provider):
        assert (await failure(provider)).message == (
            f"{LEADS[403]} openai answered with the status 403 and an HTML page"
            ' ("Just a moment...") in place of an API\'s answer.'
        )


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


@pytest.mark.parametrize("lead", [[], [event(delta(content="So far"))]], ids=["at once", "within"])
@pytest.mark.parametrize(
    "said",
    [
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        {"object": "error", "message": "Overloaded", "code": 503},
        {"detail": "Overloaded"},
        {"message": "Overloaded"},
        {"choices": [], "error": "Overloaded"},
    ],
)
async def test_an_error_in_another_envelope_within_an_answer_is_that_error(
    said: object, lead: list[Action]
) -> None:
    async with served([head(), *lead, event(said), DONE, END]) as (_, provider):
        error = await failure(provider)
        assert isinstance(error, ProviderUnavailableError)
        assert error.message == "openai: Overloaded"
