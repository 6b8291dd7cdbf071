"""When a provider is not asked any more, and when it is again."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable

import msgspec
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
)
from ai_agent_service.core.events import TextDelta
from ai_agent_service.observability.logging import read_extra
from ai_agent_service.providers.base import Provider
from ai_agent_service.providers.breaker import (
    MAX_BREAKERS,
    STATUS_EXPIRY_SECONDS,
    BreakerStatus,
    CircuitBreakers,
)
from ai_agent_service.providers.counters import ProviderCounts
from ai_agent_service.providers.http import HttpClient, Timeouts
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from tests.support.fake_provider import Action, Script, says
from tests.support.fake_upstream import Action as Bytes
from tests.support.fake_upstream import Upstream, chunk, delta, event, head, reply
from tests.support.fake_upstream import says as sent
from tests.support.provider_requests import question, text

DOWN = ProviderUnavailableError("It is down.")


class Asked:
    """A script behind breakers that open for 30 seconds of a clock that the test sets."""

    def __init__(self, *answers: Iterable[Action], limit: int = 3) -> None:
        self.now = 1000.0
        self.script = Script(*answers)
        self.breakers = CircuitBreakers(limit, 30, clock=lambda: self.now)
        self.provider: Provider = self.breakers.guard(self.script)

    @property
    def requests(self) -> int:
        return len(self.script.requests)

    @property
    def status(self) -> BreakerStatus:
        [status] = self.breakers.list_statuses()
        return status

    async def ask(self, model: str = "some-model", caller: str = "") -> str:
        """`ok`, or the code of the error."""
        request = msgspec.structs.replace(question(model=model), caller=caller)
        try:
            await text(self.provider, request)
        except ServiceError as error:
            return error.code
        return "ok"

    async def asks(self, times: int) -> list[str]:
        return [await self.ask() for _ in range(times)]


async def opened(*after: Iterable[Action], limit: int = 3) -> Asked:
    """A breaker that failures have just opened; the answers `after` them are to come."""
    asked = Asked(*([[DOWN]] * limit), *after, limit=limit)
    assert await asked.asks(limit) == ["provider_unavailable"] * limit
    assert asked.status.state == "open"
    return asked


async def test_a_provider_that_failed_so_often_is_not_asked() -> None:
    asked = Asked([DOWN])
    assert await asked.asks(5) == ["provider_unavailable"] * 3 + ["provider_circuit_open"] * 2
    assert asked.requests == 3


async def test_the_failures_of_one_caller_stop_that_caller_alone() -> None:
    asked = Asked([DOWN], [DOWN], [DOWN], says("x"))
    assert [await asked.ask(caller="a") for _ in range(4)] == [
        *["provider_unavailable"] * 3,
        "provider_circuit_open",
    ]
    assert [await asked.ask(caller="b") for _ in range(5)] == ["ok"] * 5
    assert await asked.ask(caller="a") == "provider_circuit_open"
    assert asked.status.is_for_one_caller


async def test_the_failures_of_several_callers_stop_all() -> None:
    asked = Asked([DOWN])
    assert [await asked.ask(caller=each) for each in "aaab"] == ["provider_unavailable"] * 4
    assert await asked.ask(caller="c") == "provider_circuit_open"
    assert not asked.status.is_for_one_caller


async def test_a_failure_of_another_caller_after_an_answer_stops_neither() -> None:
    asked = Asked([DOWN], [DOWN], [DOWN], says("x"), [DOWN], says("x"))
    for _ in range(3):
        await asked.ask(caller="a")
    assert [await asked.ask(caller=each) for each in "bbcb"] == [
        "ok",
        "provider_unavailable",
        "ok",
        "ok",
    ]


async def test_a_connection_that_cannot_be_made_stops_all() -> None:
    down = ProviderUnavailableError("It cannot be reached.")
    down.__cause__ = ConnectionRefusedError()
    asked = Asked([down])
    for _ in range(3):
        await asked.ask(caller="a")
    assert await asked.ask(caller="b") == "provider_circuit_open"


async def test_callers_are_told_until_when() -> None:
    asked = await opened([DOWN])
    asked.now += 12
    with pytest.raises(ProviderCircuitOpenError) as caught:
        await text(asked.provider)
    assert (caught.value.status, caught.value.retry_after) == (503, 18.0)
    assert (
        caught.value.message
        == "scripted is not asked at the moment, as its last 3 answers failed. Try again later."
    )


async def test_an_answer_that_comes_to_its_end_ends_the_row() -> None:
    asked = Asked([DOWN], [DOWN], says("x"), [DOWN], [DOWN], says("x"))
    assert "provider_circuit_open" not in await asked.asks(6)
    assert asked.status == BreakerStatus(
        "scripted", "some-model", "closed", 0, "provider_unavailable", None, 0
    )


@pytest.mark.parametrize(
    "error",
    [
        DOWN,
        ProviderUnavailableError("Overloaded.", retry_after=5),
        ProviderTimeoutError("Late."),
        ProviderProtocolError("Broken."),
    ],
    ids=lambda error: error.message,
)
@pytest.mark.parametrize("lead", [[], [TextDelta("It")]], ids=["before", "within"])
async def test_failures_of_the_provider_count_before_its_answer_and_within(
    error: ServiceError, lead: list[Action]
) -> None:
    asked = Asked([*lead, error])
    assert (await asked.asks(4))[3] == "provider_circuit_open"


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("No.", code="provider_rejected_request"),
        InvalidRequestError("Images?", code="unsupported_content"),
        ContextTooLongError("Long."),
        ProviderRefusedError("No key."),
        ProviderRateLimitError("Slow down.", retry_after=5),
        ProviderRateLimitError("Slow down."),
        ProviderNotConfiguredError("No model."),
        RunTimeoutError("Late."),
    ],
    ids=lambda error: f"{error.code}-{error.retry_after}",
)
async def test_what_is_not_the_providers_failure_never_opens(error: ServiceError) -> None:
    asked = Asked([error])
    assert await asked.asks(9) == [error.code] * 9
    assert (asked.status.failures, asked.status.last_error) == (0, None)


@pytest.mark.parametrize(
    ("error", "failures"),
    [
        (ProviderRefusedError("No."), 0),
        (ProviderRateLimitError("Slow."), 0),
        (ContextTooLongError("Long."), 0),
        (RunTimeoutError("Late."), 2),
    ],
)
async def test_a_provider_that_refuses_answers_and_a_deadline_tells_nothing(
    error: ServiceError, failures: int
) -> None:
    asked = Asked([DOWN], [DOWN], [error])
    await asked.asks(3)
    assert asked.status.failures == failures


async def test_a_fault_in_a_plug_in_is_not_the_providers() -> None:
    asked = Asked([KeyError("bug")])
    for _ in range(5):
        with pytest.raises(KeyError):
            await asked.ask()
    assert (asked.status.failures, asked.requests) == (0, 5)


async def test_many_that_fail_together_open_once(caplog: pytest.LogCaptureFixture) -> None:
    released = asyncio.Event()
    asked = Asked([released, DOWN])
    asking = [asyncio.create_task(asked.ask()) for _ in range(200)]
    async with asyncio.timeout(5):
        await asked.script.waiting.wait()
    released.set()
    assert set(await asyncio.gather(*asking)) == {"provider_unavailable"}
    assert (asked.status.openings, asked.status.failures) == (1, 3)
    assert [record.getMessage() for record in caplog.records] == ["provider.breaker_opened"]


async def test_models_and_providers_have_breakers_of_their_own() -> None:
    asked = Asked([DOWN])
    assert [await asked.ask("one") for _ in range(4)][-1] == "provider_circuit_open"
    assert await asked.ask("two") == "provider_unavailable"
    other = Script(says("fine"))
    other.name = "another"
    assert await text(asked.breakers.guard(other), question(model="one")) == "fine"
    assert [
        (status.provider, status.model, status.state) for status in asked.breakers.list_statuses()
    ] == [
        ("another", "one", "closed"),
        ("scripted", "one", "open"),
        ("scripted", "two", "closed"),
    ]


async def test_two_agents_share_what_is_known_of_a_model() -> None:
    asked = await opened([DOWN])
    with pytest.raises(ProviderCircuitOpenError):
        await text(asked.breakers.guard(asked.script))


async def test_none_opens_where_that_is_turned_off() -> None:
    asked = Asked([DOWN], limit=0)
    assert await asked.asks(30) == ["provider_unavailable"] * 30


async def test_only_so_many_models_are_kept() -> None:
    asked = Asked([DOWN], limit=1)
    for number in range(MAX_BREAKERS + 5):
        await asked.ask(f"model-{number}")
    assert len(asked.breakers.list_statuses()) == MAX_BREAKERS


# Half open


async def test_one_request_finds_out_and_the_others_are_still_refused() -> None:
    released = asyncio.Event()
    asked = await opened([released, *says("back")], says("back"))
    asked.now += 29.9
    assert await asked.ask() == "provider_circuit_open"
    asked.now += 0.1
    probing = asyncio.create_task(asked.ask())
    async with asyncio.timeout(5):
        await asked.script.waiting.wait()
    assert asked.status.state == "half_open"
    with pytest.raises(ProviderCircuitOpenError) as caught:
        await text(asked.provider)
    assert caught.value.retry_after == 1.0
    released.set()
    assert await probing == "ok"
    assert asked.status == BreakerStatus(
        "scripted", "some-model", "closed", 0, "provider_unavailable", None, 1
    )
    assert await asked.ask() == "ok"


async def test_the_first_event_lets_the_others_in_though_the_answer_is_long() -> None:
    released = asyncio.Event()
    asked = await opened([TextDelta("Long"), released, *says(" answer")], says("back"))
    asked.now += 30
    probing = asyncio.create_task(asked.ask())
    async with asyncio.timeout(5):
        await asked.script.waiting.wait()
    assert await asked.ask() == "ok"
    released.set()
    assert await probing == "ok"


async def test_a_probe_that_breaks_off_opens_again_at_once() -> None:
    asked = await opened([TextDelta("It"), DOWN], says("back"))
    asked.now += 30
    assert await asked.asks(2) == ["provider_unavailable", "provider_circuit_open"]
    assert (asked.status.openings, asked.status.seconds_left) == (2, 30.0)


async def test_a_probe_that_fails_opens_again_for_the_whole_time() -> None:
    asked = await opened([ProviderTimeoutError("Late.")], says("back"))
    asked.now += 31
    assert await asked.asks(2) == ["provider_timeout", "provider_circuit_open"]
    assert asked.status == BreakerStatus(
        "scripted", "some-model", "open", 4, "provider_timeout", 30.0, 2, True
    )
    asked.now += 30
    assert await asked.ask() == "ok"


@pytest.mark.parametrize(
    "error",
    [
        ProviderRefusedError("No key."),
        ProviderRateLimitError("Slow down."),
        ContextTooLongError("Long."),
    ],
)
async def test_a_probe_that_is_refused_shows_that_the_provider_answers(error: ServiceError) -> None:
    asked = await opened([error], says("back"))
    asked.now += 30
    assert await asked.ask() == error.code
    assert asked.status.state == "closed"


@pytest.mark.parametrize(
    "error", [RunTimeoutError("Late."), InvalidRequestError("Images?", code="unsupported_content")]
)
async def test_a_probe_that_finds_nothing_out_makes_room_for_the_next(error: ServiceError) -> None:
    asked = await opened([error], says("back"))
    asked.now += 30
    assert await asked.asks(2) == [error.code, "ok"]


@pytest.mark.parametrize(
    "lead", [[], [TextDelta("It")]], ids=["before the first event", "after it"]
)
async def test_a_probe_whose_client_leaves_makes_room_for_the_next(lead: list[Action]) -> None:
    asked = await opened([*lead, asyncio.Event()], says("back"))
    asked.now += 30
    probing = asyncio.create_task(asked.ask())
    async with asyncio.timeout(5):
        await asked.script.waiting.wait()
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probing
    assert asked.script.closed == 4
    assert await asked.asks(2) == ["ok", "ok"]


async def test_a_probe_that_is_closed_makes_room_for_the_next() -> None:
    asked = await opened(says("x", "y"), says("back"))
    asked.now += 30
    events = asked.provider.stream(question())
    await anext(events)
    await events.aclose()
    assert await asked.ask() == "ok"


async def test_clients_that_leave_count_for_nothing() -> None:
    asked = Asked([DOWN], [DOWN], [asyncio.Event()], [DOWN])
    await asked.asks(2)
    leaving = asyncio.create_task(asked.ask())
    async with asyncio.timeout(5):
        await asked.script.waiting.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert (asked.status.state, asked.status.failures) == ("closed", 2)
    assert await asked.asks(2) == ["provider_unavailable", "provider_circuit_open"]


async def test_what_began_before_tells_nothing_of_later() -> None:
    failing, ending = asyncio.Event(), asyncio.Event()
    asked = Asked(
        [failing, DOWN], [ending, *says("x")], [DOWN], [DOWN], [DOWN], says("back"), [DOWN]
    )
    early = []
    for _ in range(2):
        asked.script.waiting.clear()
        early.append(asyncio.create_task(asked.ask()))
        async with asyncio.timeout(5):
            await asked.script.waiting.wait()
    await asked.asks(3)
    ending.set()
    assert await early[1] == "ok"
    assert (asked.status.state, asked.status.failures) == ("open", 3)
    asked.now += 30
    assert await asked.ask() == "ok"
    failing.set()
    assert await early[0] == "provider_unavailable"
    assert (asked.status.state, asked.status.failures) == ("closed", 0)


async def test_each_change_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    asked = await opened(says("back"))
    asked.now += 30
    await asked.asks(2)
    named = {"provider": "scripted", "model": "some-model"}
    assert [
        (record.getMessage(), record.levelno, read_extra(record)) for record in caplog.records
    ] == [
        (
            "provider.breaker_opened",
            logging.WARNING,
            {
                **named,
                "failures": 3,
                "code": "provider_unavailable",
                "seconds": 30,
                "for_one_caller": True,
            },
        ),
        ("provider.breaker_closed", logging.INFO, named),
    ]


# Over HTTP, and the counts


@pytest.mark.parametrize(
    "answer",
    [
        reply(500, {"error": {"message": "Oh."}}),
        reply(503, {"error": {"message": "Later."}}, retry_after="0.01"),
        [asyncio.Event()],
        ["close"],
        ["reset"],
        [head(), event(delta(content="It")), asyncio.Event()],
        [head(), event(delta(content="It")), "reset"],
        [head(), event({"error": {"message": "Overloaded.", "code": 502}})],
        [head(), chunk(b"data: nonsense\n\n")],
    ],
    ids=[
        "500",
        "503",
        "stall",
        "close",
        "reset",
        "stall within",
        "cut within",
        "error within",
        "nonsense",
    ],
)
async def test_faults_of_a_real_server_open_the_breaker(answer: list[Bytes]) -> None:
    timeouts = Timeouts(first_byte=0.2, idle=0.2)
    async with Upstream(answer) as upstream, HttpClient(timeouts, max_retries=0) as http:
        breakers = CircuitBreakers(2, 30)
        provider = breakers.guard(OpenAICompatible(http, base_url=upstream.url))
        for _ in range(2):
            with pytest.raises(
                (ProviderUnavailableError, ProviderTimeoutError, ProviderProtocolError)
            ):
                await text(provider)
        with pytest.raises(ProviderCircuitOpenError):
            await text(provider)
        assert len(upstream.requests) == 2


async def test_a_refused_connection_opens_the_breaker() -> None:
    async with HttpClient(max_retries=0) as http:
        provider = CircuitBreakers(1, 30).guard(
            OpenAICompatible(http, base_url="http://127.0.0.1:1")
        )
        with pytest.raises(ProviderUnavailableError, match="cannot be reached"):
            await text(provider)
        with pytest.raises(ProviderCircuitOpenError):
            await text(provider)


async def test_requests_retries_and_errors_are_counted() -> None:
    down = reply(503, {"error": {"message": "Later."}})
    answers = (
        sent("fine"),
        down,
        sent("fine"),
        down,
        down,
        reply(401, {"error": {"message": "No."}}),
    )
    async with Upstream(*answers) as upstream, HttpClient(max_retries=1, first_delay=0.001) as http:
        breakers = CircuitBreakers(1, 30, counts=http.counts)
        provider = breakers.guard(OpenAICompatible(http, base_url=upstream.url))
        for model in ("a", "a", "a", "a", "b"):
            try:
                await text(provider, question(model=model))
            except ServiceError:
                continue
        codes = ("provider_unavailable", "provider_circuit_open", "provider_authentication_failed")
        assert http.counts == {
            "openai": ProviderCounts(requests=5, retries=2, errors=Counter(codes))
        }


async def test_a_guarded_provider_is_as_the_provider_itself() -> None:
    asked = Asked(says("x"))
    assert (asked.provider.name, asked.provider.missing, asked.provider.model_list) == (
        "scripted",
        (),
        ("other-model",),
    )
    assert await asked.provider.default_model() == "scripted-model"


async def test_one_that_nobody_asks_is_not_told_as_failing_for_ever() -> None:
    asked = Asked([DOWN], limit=1)
    await asked.ask()
    asked.now += 30 + STATUS_EXPIRY_SECONDS - 1
    assert (asked.status.state, asked.status.seconds_left) == ("open", 0)
    asked.now += 1
    assert (asked.status.state, asked.status.seconds_left) == ("closed", None)
    assert await asked.ask() == "provider_unavailable"
    assert (asked.status.state, asked.status.openings) == ("open", 2), (
        "the first who asks finds out, and one failure is enough"
    )
