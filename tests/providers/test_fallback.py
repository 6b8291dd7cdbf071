"""Who answers when an agent's own provider fails."""

import asyncio
import logging
import time
from collections.abc import Iterable

import pytest

from ai_agent_service.core.errors import (
    ContextTooLongError,
    InvalidRequestError,
    ProviderCircuitOpenError,
    ProviderNotConfiguredError,
    ProviderProtocolError,
    ProviderRateLimitError,
    ProviderRefusedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RunTimeoutError,
    ServiceError,
    UpstreamError,
)
from ai_agent_service.core.events import ReasoningDelta, TextDelta
from ai_agent_service.observability.logging import read_extra
from ai_agent_service.providers.breaker import CircuitBreakers
from ai_agent_service.providers.demo import Demo
from ai_agent_service.providers.fallback import FailoverCandidate, FallbackProvider
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from tests.support.fake_provider import Action, Script, says
from tests.support.fake_upstream import Upstream, reply
from tests.support.fake_upstream import says as sent
from tests.support.provider_requests import collect_events, finish, question, text

DOWN = ProviderUnavailableError("own: It is down.")


class Named(Script):
    """A script under a name, which needs `missing`, and whose default model is `model` unless that
    is an error."""

    def __init__(
        self,
        name: str,
        *answers: Iterable[Action],
        missing: tuple[str, ...] = (),
        model: str | UpstreamError = "default",
    ) -> None:
        super().__init__(*answers)
        self.name = name
        self.missing = missing
        self.model = model

    async def default_model(self) -> str:
        if isinstance(self.model, UpstreamError):
            raise self.model
        return self.model


def fallback(own: Script, *others: Script, model: str = "") -> FallbackProvider:
    return FallbackProvider(
        "helper", own, tuple(FailoverCandidate(other, model) for other in others)
    )


async def failure(provider: FallbackProvider, *, seconds: float = 5.0) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await collect_events(provider.stream(question(seconds=seconds)))
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        DOWN,
        ProviderTimeoutError("Late."),
        ProviderRateLimitError("Slow down.", retry_after=60),
        ProviderRefusedError("No key."),
        ProviderProtocolError("Nonsense."),
        ProviderCircuitOpenError("Not asked.", retry_after=3),
        ProviderNotConfiguredError("No model."),
    ],
    ids=lambda error: error.code,
)
async def test_another_answers_when_the_agents_own_fails(error: ServiceError) -> None:
    own, other = Named("own", [error]), Named("other", says("I am here."))
    assert await text(fallback(own, other)) == "I am here."
    assert (len(own.requests), len(other.requests)) == (1, 1)


async def test_the_agents_own_answers_while_it_can() -> None:
    own, other = Named("own", says("Own.")), Named("other", says("FailoverCandidate."))
    assert (await collect_events(fallback(own, other).stream(question())))[0] == TextDelta("Own.")
    assert other.requests == []


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("Wrong.", param="messages"),
        ContextTooLongError("Long."),
        RunTimeoutError("Late."),
    ],
)
async def test_what_no_other_provider_mends_goes_to_the_caller(error: ServiceError) -> None:
    other = Named("other", says("FailoverCandidate."))
    assert await failure(fallback(Named("own", [error]), other)) is error
    assert other.requests == []


@pytest.mark.parametrize("first", [TextDelta("It"), ReasoningDelta("Hm")])
async def test_an_answer_that_has_begun_is_not_begun_again(
    first: TextDelta | ReasoningDelta,
) -> None:
    other = Named("other", says("FailoverCandidate."))
    events = fallback(Named("own", [first, DOWN]), other).stream(question())
    assert await anext(events) == first
    with pytest.raises(ProviderUnavailableError):
        await anext(events)
    assert other.requests == []


async def test_an_answer_without_anything_in_it_is_a_failure() -> None:
    assert (
        await text(fallback(Named("own", []), Named("other", says("FailoverCandidate."))))
        == "FailoverCandidate."
    )


async def test_they_are_asked_in_order_until_one_answers() -> None:
    scripts = [Named(name, [DOWN]) for name in ("own", "a", "b")] + [
        Named("c", says("C.")),
        Named("d", says("D.")),
    ]
    assert await text(fallback(*scripts)) == "C."
    assert [len(script.requests) for script in scripts] == [1, 1, 1, 1, 0]


async def test_if_all_fail_the_error_is_that_of_the_agents_own() -> None:
    slow = ProviderRateLimitError("Slow down.", retry_after=7)
    assert (
        await failure(fallback(Named("own", [slow]), Named("a", [DOWN]), Named("b", [DOWN])))
        is slow
    )


async def test_if_all_fail_the_error_is_that_of_the_first_that_could_be_asked() -> None:
    own = Named("own", says("x"), missing=("OWN_KEY",))
    assert (
        await failure(
            fallback(own, Named("a", [DOWN]), Named("b", [ProviderTimeoutError("Late.")]))
        )
        is DOWN
    )
    nobody = await failure(fallback(own, Named("a", says("x"), missing=("A_KEY", "A_URL"))))
    assert (nobody.code, nobody.message) == (
        "provider_not_configured",
        "OWN_KEY must be set for own.",
    )


async def test_a_fallback_that_does_not_take_the_request_is_passed_over() -> None:
    picky = Named("picky", [InvalidRequestError("No images.", param="messages")])
    assert (
        await text(
            fallback(Named("own", [DOWN]), picky, Named("other", says("FailoverCandidate.")))
        )
        == "FailoverCandidate."
    )
    assert await failure(fallback(Named("own", [DOWN]), picky)) is DOWN


async def test_a_conversation_too_long_for_a_fallback_is_for_the_loop_to_shorten() -> None:
    error = ContextTooLongError("Long.")
    assert (
        await failure(
            fallback(
                Named("own", [DOWN]),
                Named("small", [error]),
                Named("other", says("FailoverCandidate.")),
            )
        )
        is error
    )


async def test_each_is_asked_for_its_own_model_and_a_callers_choice_is_for_the_first() -> None:
    own, other, third = (
        Named("own", [DOWN]),
        Named("other", [DOWN]),
        Named("third", says("x"), model="its-default"),
    )
    asked = FallbackProvider(
        "helper", own, (FailoverCandidate(other, "mini"), FailoverCandidate(third))
    )
    last = await finish(asked.stream(question(model="chosen", temperature=0.5)))
    assert [script.requests[0].model for script in (own, other, third)] == [
        "chosen",
        "mini",
        "its-default",
    ]
    assert all(
        script.requests[0].settings == {"temperature": 0.5} for script in (own, other, third)
    )
    assert last.model == "its-default"


async def test_the_model_is_not_named_when_it_is_the_one_that_was_asked_for() -> None:
    assert (
        await finish(
            fallback(Named("own", says("x")), Named("other", says("y"))).stream(question())
        )
    ).model == ""


async def test_all_are_asked_within_the_deadline_of_the_request() -> None:
    own, other = Named("own", [DOWN]), Named("other", says("x"))
    request = question()
    await collect_events(fallback(own, other).stream(request))
    assert own.requests[0].deadline == other.requests[0].deadline == request.deadline


async def test_nobody_is_asked_once_the_deadline_has_passed() -> None:
    other = Named("other", says("x"))
    assert await failure(fallback(Named("own", [DOWN]), other), seconds=-1) is DOWN
    assert other.requests == []


async def test_leaving_ends_it_at_once() -> None:
    own, other = Named("own", [asyncio.Event()]), Named("other", says("x"))
    asking = asyncio.create_task(collect_events(fallback(own, other).stream(question())))
    async with asyncio.timeout(5):
        await own.waiting.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (own.closed, other.requests) == (1, [])


async def test_leaving_the_answer_of_a_fallback_closes_it() -> None:
    other = Named("other", [TextDelta("x"), asyncio.Event()])
    events = fallback(Named("own", [DOWN]), other).stream(question())
    await anext(events)
    await events.aclose()
    assert other.closed == 1


async def test_the_log_tells_who_answered_and_why(caplog: pytest.LogCaptureFixture) -> None:
    await text(
        FallbackProvider(
            "helper",
            Named("own", [DOWN]),
            (
                FailoverCandidate(Named("other", [DOWN]), "mini"),
                FailoverCandidate(Named("third", says("x"))),
            ),
        )
    )
    told = {"agent_id": "helper", "code": "provider_unavailable", "cause": "own: It is down."}
    assert [
        (record.getMessage(), record.levelno, read_extra(record)) for record in caplog.records
    ] == [
        (
            "provider.fallback",
            logging.WARNING,
            {**told, "from": "own/some-model", "to": "other/mini"},
        ),
        ("provider.fallback", logging.WARNING, {**told, "from": "other/mini", "to": "third"}),
    ]


async def test_the_log_tells_when_nobody_answers_and_not_what_callers_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    picky = Named("picky", [InvalidRequestError("You said: my secret.")])
    await failure(
        fallback(Named("own", [DOWN]), picky, Named("late", [ProviderTimeoutError("Late.")]))
    )
    last = caplog.records[-1]
    assert last.getMessage() == "provider.fallbacks_failed"
    failed = [
        "own/some-model: provider_unavailable",
        "picky: invalid_request",
        "late: provider_timeout",
    ]
    assert read_extra(last) == {"agent_id": "helper", "failed": failed}
    assert not any("secret" in str(read_extra(record)) for record in caplog.records)


async def test_the_demo_may_be_the_last_resort() -> None:
    answered = FallbackProvider("helper", Named("own", [DOWN]), (FailoverCandidate(Demo(pause=0)),))
    assert "demo" in await text(answered)


# What it says of itself


async def test_it_is_as_the_agents_own() -> None:
    own = Named("own", says("x"), model="big")
    asked = fallback(own, Named("other", says("x")))
    assert (asked.name, asked.missing, asked.model_list, await asked.default_model()) == (
        "own",
        (),
        ("other-model",),
        "big",
    )


async def test_nothing_is_missing_if_one_can_answer() -> None:
    own = Named("own", says("x"), missing=("OWN_KEY",))
    without = Named("without", says("x"), missing=("OTHER_KEY",))
    assert fallback(own, without).missing == ("OWN_KEY",)
    answering = fallback(own, without, Named("other", says("FailoverCandidate.")))
    assert answering.missing == ()
    assert await text(answering) == "FailoverCandidate."
    assert own.requests == without.requests == []


async def test_a_model_that_cannot_be_told_is_asked_for_when_it_is_needed() -> None:
    own, other = Named("own", says("Own."), model=DOWN), Named("other", says("FailoverCandidate."))
    asked = fallback(own, other)
    assert await asked.default_model() == ""
    assert await text(asked, question(model="")) == "FailoverCandidate."
    own.model = "back"
    assert await text(asked, question(model="")) == "Own."
    assert own.requests[0].model == "back"


async def test_no_model_is_an_error_if_no_other_has_one() -> None:
    without = ProviderNotConfiguredError("Give it a model.")
    with pytest.raises(ProviderNotConfiguredError, match="Give it a model"):
        await fallback(
            Named("own", says("x"), model=without), Named("other", says("x"), model=DOWN)
        ).default_model()


# Over HTTP


async def test_a_storm_of_refusals_is_not_made_worse_by_a_fallback() -> None:
    refusal = reply(429, {"error": {"message": "Slow down.", "code": None}})
    async with (
        Upstream(refusal) as first,
        Upstream(refusal) as second,
        HttpClient(first_delay=0.001) as http,
    ):
        breakers = CircuitBreakers(5, 30)
        own = breakers.guard(OpenAICompatible(http, base_url=first.url))
        elsewhere = OpenAICompatible(http, base_url=second.url)
        elsewhere.name = "elsewhere"  # type: ignore[misc]
        asked = FallbackProvider(
            "helper", own, (FailoverCandidate(breakers.guard(elsewhere), "m"),)
        )
        errors = await asyncio.gather(*(failure(asked, seconds=20) for _ in range(200)))
        assert {error.code for error in errors} == {"provider_rate_limited"}
        assert [200 < len(upstream.requests) <= 240 for upstream in (first, second)] == [True, True]


async def test_an_open_breaker_goes_to_the_fallback_without_a_wait() -> None:
    async with (
        Upstream(reply(500, {"error": {"message": "Oh."}})) as first,
        Upstream(sent("FailoverCandidate.")) as second,
        HttpClient() as http,
    ):
        breakers = CircuitBreakers(1, 30)
        own = breakers.guard(OpenAICompatible(http, base_url=first.url))
        asked = FallbackProvider(
            "helper",
            own,
            (FailoverCandidate(breakers.guard(OpenAICompatible(http, base_url=second.url)), "m"),),
        )
        assert await text(asked) == "FailoverCandidate."
        count, began = len(first.requests), time.monotonic()
        assert await text(asked) == "FailoverCandidate."
        assert (len(first.requests), time.monotonic() - began < 0.4) == (count, True)
