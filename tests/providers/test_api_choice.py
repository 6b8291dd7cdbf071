"""Whether a model is asked through chat completions or through the Responses API."""

import msgspec
import pytest

from ai_agent_service.config.agent_definition import ApiName
from ai_agent_service.core.errors import ServiceError
from ai_agent_service.core.messages import Message, ToolCall
from ai_agent_service.providers.api_choice import Api
from ai_agent_service.providers.azure import AzureOpenAI
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from ai_agent_service.providers.openrouter import OpenRouter
from ai_agent_service.providers.provider_data import add_provider_data
from tests.support.fake_upstream import Action, Upstream, events, reply, says
from tests.support.provider_requests import collect_events, question, text
from tests.support.responses_server import answers, build_events

TOOLS_REFUSED = (
    "Function tools with reasoning_effort are not supported for gpt-6 in /v1/chat/completions."
    " To use function tools, use /v1/responses or set reasoning_effort to 'none'."
)


def responds(words: str = "Hi") -> list[Action]:
    """Build an answer of the Responses API."""
    return events(*build_events(answers(("text", words)), {"model": "m"}))


def refuses(status: int, message: str, code: str | None = None) -> list[Action]:
    return reply(status, {"error": {"message": message, "code": code}})


class Vendor(OpenAICompatible):
    """Server at a loopback address that is asked like OpenAI itself."""

    def default_api(self) -> Api:
        return "responses"


async def ask(
    *script: list[Action],
    api: ApiName = "auto",
    kind: type[OpenAICompatible] = OpenAICompatible,
    times: int = 1,
) -> tuple[list[str], list[str], OpenAICompatible]:
    """Return the paths of requests, the answers or errors, and the provider."""
    said = []
    async with Upstream(*script) as upstream, HttpClient(max_retries=0) as http:
        provider = kind(http, base_url=f"{upstream.url}/v1")
        for _ in range(times):
            request = msgspec.structs.replace(question(model="gpt-6"), api=api)
            try:
                said.append(await text(provider, request))
            except ServiceError as error:
                said.append(error.message)
        return [request.path for request in upstream.requests], said, provider


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.openai.com/v1", "responses"),
        ("https://eu.api.openai.com/v1", "responses"),
        ("https://me.openai.azure.com/openai/v1", "responses"),
        ("http://127.0.0.1:8000/v1", "chat_completions"),
        ("https://api.mistral.ai/v1", "chat_completions"),
        ("https://api.openai.com.example.org/v1", "chat_completions"),
    ],
)
def test_the_vendors_themselves_are_asked_through_responses(url: str, expected: str) -> None:
    provider = OpenAICompatible(HttpClient(), base_url=url)
    assert provider.describe_api("m", "auto") == f"auto: {expected}"
    assert provider.describe_api("m", "chat_completions") == "chat_completions"


@pytest.mark.parametrize(
    ("version", "expected", "path"),
    [
        (None, "responses", "/openai/v1/responses"),
        ("preview", "responses", "/openai/v1/responses?api-version=preview"),
        ("2024-10-21", "chat_completions", "/openai/responses?api-version=2024-10-21"),
        (
            "2025-03-01-preview",
            "responses",
            "/openai/responses?api-version=2025-03-01-preview",
        ),
        (
            "2025-04-01-preview",
            "responses",
            "/openai/responses?api-version=2025-04-01-preview",
        ),
    ],
)
def test_azure_has_responses_since_an_api_version(
    version: str | None, expected: str, path: str
) -> None:
    base = "https://me.openai.azure.com"
    provider = AzureOpenAI(HttpClient(), base_url=base)
    provider.api_version = version
    assert provider.default_api() == expected
    assert provider.responses_url() == base + path
    assert AzureOpenAI(HttpClient(), base_url="http://gateway").default_api() == "chat_completions"


def test_openrouter_has_one_api() -> None:
    provider = OpenRouter(HttpClient(), base_url="https://openrouter.ai/api/v1")
    assert provider.describe_api("m", "auto") == "chat_completions"


@pytest.mark.parametrize(
    "refusal",
    [
        refuses(400, TOOLS_REFUSED),
        refuses(
            404, "This model is only supported in v1/responses and not in v1/chat/completions."
        ),
        refuses(
            404,
            "This is not a chat model and thus not supported in the v1/chat/completions endpoint."
            " Did you mean to use v1/completions?",
        ),
        refuses(
            400,
            "The chatCompletion operation does not work with the specified model, gpt-5-codex.",
            "OperationNotSupported",
        ),
        refuses(400, "No.", "unsupported_api_for_model"),
    ],
)
async def test_a_model_that_chat_completions_refuse_is_asked_through_responses_from_then_on(
    refusal: list[Action], caplog: pytest.LogCaptureFixture
) -> None:
    paths, said, provider = await ask(refusal, responds(), times=2)
    assert paths == ["/v1/chat/completions", "/v1/responses", "/v1/responses"]
    assert said == ["Hi", "Hi"]
    assert provider.describe_api("gpt-6", "auto") == "auto: responses"
    assert provider.describe_api("other", "auto") == "auto: chat_completions"
    assert caplog.messages.count("provider.api_switched") == 1


@pytest.mark.parametrize(
    "refusal",
    [
        reply(404, {"detail": "Not Found"}),
        reply(404, {"error": {"code": "404", "message": "Resource not found"}}),
        reply(404, b"<html>404</html>", "text/html"),
        reply(404, b""),
        reply(405, {"detail": "Method Not Allowed"}),
        refuses(
            400,
            "Azure OpenAI Responses API is enabled only for api-version 2025-03-01-preview and"
            " later",
        ),
        refuses(400, "The requested model 'x' cannot be used with the Responses API."),
    ],
)
async def test_a_server_without_responses_is_asked_through_chat_completions_from_then_on(
    refusal: list[Action],
) -> None:
    paths, said, _ = await ask(refusal, says("Hi"), kind=Vendor, times=2)
    assert paths == ["/v1/responses", "/v1/chat/completions", "/v1/chat/completions"]
    assert said == ["Hi", "Hi"]


@pytest.mark.parametrize(
    ("kind", "default"), [(Vendor, "responses"), (OpenAICompatible, "chat_completions")]
)
@pytest.mark.parametrize(
    "refusal",
    [
        refuses(404, "The model `gpt-6` does not exist.", "model_not_found"),
        refuses(404, "The API deployment for this resource does not exist.", "DeploymentNotFound"),
        refuses(400, "Invalid 'temperature'."),
        refuses(401, "Use /v1/responses with a key."),
    ],
)
async def test_another_error_switches_nothing(
    refusal: list[Action], kind: type[OpenAICompatible], default: str
) -> None:
    paths, _, provider = await ask(refusal, kind=kind)
    assert len(paths) == 1
    assert provider.describe_api("gpt-6", "auto") == f"auto: {default}"


@pytest.mark.parametrize(
    ("api", "refusal", "path"),
    [
        ("chat_completions", refuses(400, TOOLS_REFUSED), "/v1/chat/completions"),
        ("responses", reply(404, {"detail": "Not Found"}), "/v1/responses"),
    ],
)
async def test_an_api_that_the_agent_names_is_never_switched(
    api: ApiName, refusal: list[Action], path: str
) -> None:
    paths, said, _ = await ask(refusal, says("Hi"), api=api)
    assert paths == [path]
    assert said != ["Hi"]


async def test_a_model_that_both_refuse_stays_with_the_default() -> None:
    script = (refuses(400, TOOLS_REFUSED), reply(404, {"detail": "Not Found"}))
    paths, _, provider = await ask(*script)
    assert paths == ["/v1/chat/completions", "/v1/responses"]
    assert provider.describe_api("gpt-6", "auto") == "auto: chat_completions"


@pytest.mark.parametrize("has_output", [True, False])
async def test_a_request_is_repeated_only_before_a_part_of_its_answer_was_passed_on(
    has_output: bool,
) -> None:
    sent = build_events(answers(("text", "Hi")), {"model": "m"})
    place = next(n for n, each in enumerate(sent) if each["type"].endswith("text.delta"))
    error = {"type": "error", "code": "invalid_encrypted_content", "message": "Not verified."}
    broken = events(*sent[: place + has_output], error)
    call = add_provider_data(
        ToolCall("c", "f", "{}"), "openai", "some-model", {"responses": {"before": []}}
    )
    asked = question(Message("assistant", "", (call,)))
    async with Upstream(broken, responds()) as upstream, HttpClient() as http:
        provider = Vendor(http, base_url=f"{upstream.url}/v1")
        if has_output:
            with pytest.raises(ServiceError):
                await collect_events(provider.stream(asked))
        else:
            assert await text(provider, asked) == "Hi"
        assert len(upstream.requests) == 2 - has_output


async def test_encrypted_reasoning_and_summaries_that_are_refused_are_not_asked_for_again() -> None:
    script = [
        refuses(400, "Encrypted content is not supported with this model."),
        refuses(400, "Your organization must be verified to generate reasoning summaries."),
        responds(),
    ]
    async with Upstream(*script) as upstream, HttpClient() as http:
        provider = Vendor(http, base_url=f"{upstream.url}/v1")
        for _ in range(2):
            assert await text(provider, question(reasoning_effort="low")) == "Hi"
    sent = [request.json for request in upstream.requests]
    assert ["include" in body for body in sent] == [True, False, False, False]
    assert [body["reasoning"].get("summary") for body in sent] == ["auto", "auto", None, None]


async def test_a_body_of_json_is_an_answer_too() -> None:
    response = build_events(answers(("text", "Hi")), {"model": "m"})[-1]["response"]
    paths, said, _ = await ask(reply(200, response), kind=Vendor)
    assert (paths, said) == (["/v1/responses"], ["Hi"])


async def test_a_stream_that_breaks_off_is_an_error() -> None:
    _, said, _ = await ask([*responds()[:5], "close"], kind=Vendor)
    assert "broke off" in said[0]
