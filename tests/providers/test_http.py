"""Deadlines, retries and errors of the HTTP client that all providers share."""

import asyncio
import gzip
import itertools
import json
import time
from collections.abc import Iterable
from contextlib import aclosing
from email.utils import formatdate

import pytest

from ai_agent_service.core.errors import (
    ProviderProtocolError,
    ProviderRateLimitError,
    ProviderRefusedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RunTimeoutError,
    ServiceError,
    UpstreamError,
)
from ai_agent_service.core.events import TextDelta
from ai_agent_service.providers import http as http_module
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.providers.http import MAX_RETRY_AFTER, RETRY_BUDGET, HttpClient, Timeouts
from ai_agent_service.providers.http_errors import HttpTarget
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from tests.support.fake_upstream import (
    DONE,
    END,
    Action,
    Upstream,
    chunk,
    deaf_port,
    delta,
    event,
    head,
    reply,
    says,
)
from tests.support.provider_requests import (
    HTML,
    collect_events,
    failure,
    finish,
    question,
    refusal,
    served,
    text,
)


def endless(first: Iterable[Action], *again: Action) -> Iterable[Action]:
    """An answer that begins with `first` and goes on with `again` for ever."""
    return itertools.chain(first, itertools.cycle(again))


# Connections


async def test_a_connection_is_used_again_after_a_normal_stream() -> None:
    async with served(says("one"), says("two"), says("three")) as (upstream, provider):
        assert [await text(provider) for _ in range(3)] == ["one", "two", "three"]
        assert (upstream.connections, len(upstream.requests), upstream.disconnects) == (1, 3, 0)


async def test_a_connection_is_used_again_though_the_end_of_the_body_comes_late() -> None:
    late = [*says("one")[:-1], 0.05, END]
    async with served(late, says("two")) as (upstream, provider):
        assert [await text(provider) for _ in range(2)] == ["one", "two"]
        assert upstream.connections == 1


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_connection_is_used_again_after_an_error_however_its_body_is_cut(
    pieces: int,
) -> None:
    whole = refusal(400, "x" * 300)[0]
    assert isinstance(whole, bytes)
    size = len(whole) // pieces + 1
    cut: list[Action] = [
        action for at in range(0, len(whole), size) for action in (whole[at : at + size], 0.02)
    ]
    async with served(cut, says("fine")) as (upstream, provider):
        assert (await failure(provider)).message == f"openai: {'x' * 300}"
        assert await text(provider) == "fine"
        assert upstream.connections == 1


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced() -> None:
    async with served([*says("one"), "close"], says("two")) as (upstream, provider):
        assert await text(provider) == "one"
        await upstream.until(lambda: not upstream.open)
        assert await text(provider) == "two"
        assert upstream.connections == 2


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_connection_of_the_pool_that_dies_at_once_is_replaced_without_a_retry(
    end: Action,
) -> None:
    async with served(says("one"), [end], says("two"), max_retries=0) as (upstream, provider):
        assert [await text(provider) for _ in range(2)] == ["one", "two"]
        assert (upstream.connections, len(upstream.requests)) == (2, 3)
        assert provider.http.counts["openai"].retries == 0


async def test_a_connection_of_the_pool_is_replaced_once_and_by_a_new_one() -> None:
    two = (says("one"), says("two"))
    dead: list[Action] = ["close"]
    async with served(*two, dead, dead, says("three"), max_retries=0) as (upstream, provider):
        first = provider.stream(question())
        await anext(first)
        await text(provider)  # a second connection, so that the pool has another one
        await collect_events(first)
        assert upstream.connections == 2
        assert isinstance(await failure(provider), ProviderUnavailableError)
        assert (upstream.connections, len(upstream.requests)) == (3, 4)


@pytest.mark.parametrize(
    "lead", [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n", head()]
)
async def test_a_connection_of_the_pool_that_dies_within_its_response_is_not_replaced(
    lead: bytes,
) -> None:
    async with served(says("one"), [lead, "close"], max_retries=0) as (upstream, provider):
        await text(provider)
        assert isinstance(await failure(provider), UpstreamError)
        assert len(upstream.requests) == 2


async def test_a_server_that_announces_keep_alive_and_closes_can_be_asked_at_once() -> None:
    answer = [head(keep_alive="timeout=5, max=100"), *says("Hi")[1:]]
    async with served([*answer, "close"], max_retries=0) as (upstream, provider):
        assert [await text(provider) for _ in range(60)] == ["Hi"] * 60
        assert provider.http.counts["openai"].retries == 0
        assert len(upstream.requests) >= 60


async def test_a_server_that_goes_on_after_its_end_costs_a_second_and_its_connection() -> None:
    async with served([*says("one")[:-1], asyncio.Event()]) as (upstream, provider):
        began = time.monotonic()
        assert await text(provider) == "one"
        assert time.monotonic() - began < 1.9
        await upstream.until(lambda: upstream.disconnects == 1)


async def test_what_follows_the_end_is_not_read_for_ever() -> None:
    flood = endless(says("one")[:-1], chunk(b": more\n" * 1000))
    async with served(flood) as (upstream, provider):
        began = time.monotonic()
        assert await asyncio.wait_for(text(provider), 2) == "one"
        assert time.monotonic() - began < 0.9
        await upstream.until(lambda: upstream.disconnects == 1)


async def test_leaving_an_answer_closes_its_connection_within_a_second() -> None:
    async with served([head(), event(delta(content="one")), asyncio.Event()]) as (
        upstream,
        provider,
    ):
        events = provider.stream(question())
        await anext(events)
        await events.aclose()
        await upstream.until(lambda: upstream.disconnects == 1, timeout=1)


async def test_leaving_before_the_first_byte_closes_the_connection_within_a_second() -> None:
    async with served([asyncio.Event()]) as (upstream, provider):
        asking = asyncio.create_task(collect_events(provider.stream(question())))
        await upstream.until(lambda: len(upstream.requests) == 1)
        asking.cancel()
        await upstream.until(lambda: upstream.disconnects == 1, timeout=1)
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert len(upstream.requests) == 1


async def test_leaving_an_answer_leaves_nothing_behind() -> None:
    async with served(
        [head(), event(delta(content="one")) + event(delta(content="two")), asyncio.Event()]
    ) as (upstream, provider):
        before = asyncio.all_tasks()
        async with aclosing(provider.stream(question())) as events:
            await anext(events)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() - before == set(upstream.tasks), (
            "a generator was left to the garbage collector"
        )


async def test_cookies_are_not_kept() -> None:
    first = says("one")
    first[0] = head(set_cookie="session=abc; Path=/")
    async with Upstream(first, says("two")) as upstream, HttpClient() as http:
        provider = OpenAICompatible(
            http, base_url=upstream.url.replace("127.0.0.1", "localhost")
        )  # an address never has cookies
        assert [await text(provider) for _ in range(2)] == ["one", "two"]
        assert "cookie" not in upstream.requests[1].headers


async def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Upstream(says("by proxy")) as upstream, HttpClient() as http:
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("http_proxy", upstream.url)
        assert (
            await text(OpenAICompatible(http, base_url="http://provider.invalid/v1")) == "by proxy"
        )
        assert upstream.requests[0].path == "http://provider.invalid/v1/chat/completions"


async def test_a_host_of_no_proxy_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(says("directly")) as (upstream, provider):
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert await text(provider) == "directly"
        assert upstream.requests[0].path == "/v1/chat/completions"


async def test_a_client_is_used_within_its_async_with_only() -> None:
    provider = OpenAICompatible(HttpClient(), base_url="http://127.0.0.1:1")
    with pytest.raises(RuntimeError, match="async with"):
        await collect_events(provider.stream(question()))


# Deadlines


async def test_a_server_that_does_not_accept_is_given_the_connect_timeout() -> None:
    with deaf_port() as port:
        async with HttpClient(Timeouts(connect=0.1), max_retries=1, first_delay=0.001) as http:
            began = time.monotonic()
            error = await failure(OpenAICompatible(http, base_url=f"http://127.0.0.1:{port}"))
            assert isinstance(error, ProviderTimeoutError)
            assert error.message == "openai did not accept a connection within 0.1 seconds."
            assert 0.2 <= time.monotonic() - began < 1.0, "two attempts were to be made"


@pytest.mark.parametrize("lead", [[], [head()]], ids=["silent", "headers alone"])
async def test_a_server_that_accepts_and_says_nothing_is_given_the_first_byte_timeout(
    lead: list[Action],
) -> None:
    async with served([*lead, asyncio.Event()], timeouts=Timeouts(first_byte=0.15, idle=30)) as (
        upstream,
        provider,
    ):
        began = time.monotonic()
        error = await failure(provider)
        assert isinstance(error, ProviderTimeoutError)
        assert 0.14 <= time.monotonic() - began < 1.0
        assert len(upstream.requests) == 1, "a model that thinks long is not asked again"
        await upstream.until(lambda: upstream.disconnects == 1)


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_stream_that_stalls_is_given_the_idle_timeout(pieces: int) -> None:
    said: list[Action] = [event(delta(content="x")), 0.02]
    stalled: list[Action] = [head(), *(said * pieces), asyncio.Event()]
    async with served(stalled, timeouts=Timeouts(first_byte=30, idle=0.15)) as (upstream, provider):
        began = time.monotonic()
        error = await failure(provider, seconds=2)
        assert isinstance(error, ProviderTimeoutError)
        assert "paused for too long" in error.message
        assert time.monotonic() - began < 1.0
        assert len(upstream.requests) == 1
        await upstream.until(lambda: upstream.disconnects == 1)


async def test_a_pause_shorter_than_the_idle_timeout_is_borne() -> None:
    slow = [action for sent in says("a", "b", "c", "d") for action in (sent, 0.08)]
    async with served(slow, timeouts=Timeouts(first_byte=0.4, idle=0.4)) as (_, provider):
        assert await text(provider) == "abcd"


@pytest.mark.parametrize(
    "dripped", [chunk(b":"), event(delta(content="x"))], ids=["comment bytes", "text"]
)
async def test_a_stream_that_drips_for_ever_ends_at_the_run_deadline(dripped: bytes) -> None:
    drip = endless([head()], dripped, 0.02)
    async with served(drip, timeouts=Timeouts(first_byte=0.4, idle=0.4)) as (upstream, provider):
        began = time.monotonic()
        assert isinstance(await failure(provider, seconds=0.6), RunTimeoutError)
        assert 0.58 <= time.monotonic() - began < 1.0
        await upstream.until(lambda: upstream.disconnects == 1)


@pytest.mark.parametrize(
    ("seconds", "error"), [(5.0, ProviderTimeoutError), (0.2, RunTimeoutError)]
)
async def test_headers_that_drip_for_ever_end_at_the_first_limit_that_is_met(
    seconds: float, error: type[ServiceError]
) -> None:
    drip = endless([b"HTTP/1.1 200 OK\r\nx-slow: "], b"x", 0.02)
    async with served(drip, timeouts=Timeouts(first_byte=0.4, idle=0.4)) as (upstream, provider):
        assert isinstance(await failure(provider, seconds=seconds), error)
        assert len(upstream.requests) == 1


async def test_a_reader_that_is_busy_is_no_pause_of_the_provider() -> None:
    async with served(
        [head(), event(delta(content="Hel")), event(delta("stop", content="lo")), DONE, END],
        timeouts=Timeouts(idle=0.1),
    ) as (_, provider):
        pieces = []
        async with aclosing(provider.stream(question())) as events:
            async for told in events:
                pieces.append(told)
                await asyncio.sleep(0.15)
    assert pieces[:2] == [TextDelta("Hel"), TextDelta("lo")]
    assert isinstance(pieces[-1], ModelFinished)


async def test_headers_without_a_body_are_told_as_no_beginning() -> None:
    async with served([head(), asyncio.Event()], timeouts=Timeouts(first_byte=0.1)) as (
        _,
        provider,
    ):
        error = await failure(provider)
    assert isinstance(error, ProviderTimeoutError)
    assert "did not begin to answer within 0.1 seconds" in error.message


async def test_a_flood_that_outruns_its_reader_ends_at_the_run_deadline() -> None:
    flood = endless([head()], event(delta(content="x" * 60_000)))
    async with served(flood) as (_, provider):

        async def read_slowly() -> None:
            async for _ in provider.stream(question(seconds=0.3)):
                await asyncio.sleep(0.005)

        with pytest.raises(RunTimeoutError):
            await asyncio.wait_for(read_slowly(), 1.8)


async def test_the_run_deadline_holds_before_the_first_byte_too() -> None:
    async with served([asyncio.Event()]) as (upstream, provider):
        began = time.monotonic()
        assert isinstance(await failure(provider, seconds=0.2), RunTimeoutError)
        assert time.monotonic() - began < 1.0
        assert len(upstream.requests) == 1


async def test_a_run_whose_deadline_has_passed_asks_nothing() -> None:
    async with served(says("late")) as (upstream, provider):
        assert isinstance(await failure(provider, seconds=0), RunTimeoutError)
        assert upstream.connections == 0


async def test_an_error_whose_body_stalls_keeps_its_status() -> None:
    stalled: list[Action] = [
        head(429, "application/json", content_length="99", chunked=False) + b'{"error": ',
        asyncio.Event(),
    ]
    async with served(stalled, timeouts=Timeouts(first_byte=0.1), max_retries=0) as (_, provider):
        error = await failure(provider)
        assert isinstance(error, ProviderRateLimitError)
        assert error.message == "openai answered with the status 429 and no explanation."


# Retries


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_a_passing_failure_is_tried_again(status: int) -> None:
    async with served(refusal(status), refusal(status), says("fine")) as (upstream, provider):
        assert await text(provider) == "fine"
        assert [request.body for request in upstream.requests] == [upstream.requests[0].body] * 3


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_connection_lost_before_the_first_byte_is_tried_again(end: Action) -> None:
    async with served([end], [b"HTTP/1.1 200 OK\r\n", end], says("fine")) as (upstream, provider):
        assert await text(provider) == "fine"
        assert len(upstream.requests) == 3


async def test_a_refused_connection_is_tried_again_and_then_told() -> None:
    async with Upstream() as upstream:
        url = upstream.url
    async with HttpClient(first_delay=0.02) as http:
        began = time.monotonic()
        error = await failure(OpenAICompatible(http, base_url=url))
        assert isinstance(error, ProviderUnavailableError)
        assert error.message == "openai cannot be reached: Connection refused."
        assert time.monotonic() - began >= 0.03


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501, 302])
async def test_a_lasting_failure_is_not_tried_again(status: int) -> None:
    async with served(refusal(status), says("fine")) as (upstream, provider):
        await failure(provider)
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize(
    "sent",
    [event(delta(content="x")), event(delta(content="x"))[:-9], b"5\r\n"],
    ids=["event", "half", "bare"],
)
async def test_an_answer_that_breaks_off_is_an_error_and_not_tried_again(
    sent: bytes, end: Action
) -> None:
    async with served([head(), sent, 0.02, end], says("fine")) as (upstream, provider):
        error = await failure(provider)
        assert isinstance(error, ProviderProtocolError)
        assert "broke off" in error.message
        assert len(upstream.requests) == 1


async def test_what_was_told_before_an_answer_breaks_off_stands() -> None:
    async with served([head(), event(delta(content="so far")), 0.02, "reset"]) as (_, provider):
        events = provider.stream(question())
        assert getattr(await anext(events), "text", None) == "so far"
        with pytest.raises(ProviderProtocolError):
            await anext(events)


async def test_retries_are_counted() -> None:
    async with served(refusal(503), max_retries=3) as (upstream, provider):
        assert isinstance(await failure(provider), ProviderUnavailableError)
        assert len(upstream.requests) == 4


async def test_no_retry_is_made_where_none_is_allowed() -> None:
    async with served(refusal(503), max_retries=0) as (upstream, provider):
        await failure(provider)
        assert len(upstream.requests) == 1


async def test_the_waits_grow_and_differ() -> None:
    async def give_up(model: str) -> None:
        with pytest.raises(ProviderUnavailableError):
            await collect_events(provider.stream(question(model=model)))

    async with served(refusal(503), first_delay=0.1) as (upstream, provider):
        await asyncio.gather(*(give_up(f"model-{number}") for number in range(5)))
    waits = []
    for number in range(5):
        first, second, third = [
            request.at
            for request in upstream.requests
            if request.json["model"] == f"model-{number}"
        ]
        waits.append(second - first)
        assert second - first >= 0.049
        assert third - second >= 0.099
    assert max(waits) - min(waits) >= 0.002, "five clients came back at one moment"


async def test_clients_told_to_wait_alike_do_not_come_back_at_one_moment() -> None:
    async with served(refusal(429, retry_after="0.2"), max_retries=1, first_delay=0.5) as (
        upstream,
        provider,
    ):
        await asyncio.gather(*(failure(provider) for _ in range(5)))
    again = [request.at for request in upstream.requests[5:]]
    assert len(again) == 5
    assert max(again) - min(again) >= 0.01


@pytest.mark.parametrize("header", ["seconds", "milliseconds", "date"])
async def test_retry_after_is_obeyed(header: str) -> None:
    wall = time.time()
    ahead = wall - time.monotonic()
    headers = {
        "seconds": {"retry_after": "0.3"},
        "milliseconds": {"retry_after_ms": "300", "retry_after": "90"},
        "date": {"retry_after": formatdate(wall + 1, usegmt=True)},
    }[header]
    async with served(refusal(429, **headers), says("fine")) as (upstream, provider):
        assert await text(provider) == "fine"
    first, second = upstream.requests
    assert (
        second.at + ahead >= int(wall + 1) - 0.01
        if header == "date"
        else 0.3 <= second.at - first.at < 0.9
    )


@pytest.mark.parametrize("status", [429, 503])
async def test_a_longer_wait_than_ours_is_passed_on_instead(status: int) -> None:
    async with served(refusal(status, retry_after=str(int(MAX_RETRY_AFTER) + 1))) as (
        upstream,
        provider,
    ):
        began = time.monotonic()
        error = await failure(provider, seconds=60)
        assert error.retry_after == MAX_RETRY_AFTER + 1
        assert len(upstream.requests) == 1
        assert time.monotonic() - began < 1.0


async def test_a_wait_past_the_run_deadline_is_passed_on_instead() -> None:
    async with served(refusal(429, retry_after="3")) as (upstream, provider):
        began = time.monotonic()
        error = await failure(provider, seconds=2)
        assert isinstance(error, ProviderRateLimitError)
        assert error.retry_after == 3
        assert len(upstream.requests) == 1
        assert time.monotonic() - began < 1.0


async def test_retry_after_is_passed_on_when_the_attempts_are_spent() -> None:
    async with served(refusal(429, retry_after_ms="20")) as (upstream, provider):
        assert (await failure(provider)).retry_after == 0.02
        assert len(upstream.requests) == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"retry_after": "soon"},
        {"retry_after": "-5"},
        {"retry_after": "²"},
        {"retry_after": ""},
        {"retry_after_ms": "inf"},
        {"retry_after_ms": "nan"},
        {"retry_after_ms": "often"},
        {"retry_after": "9" * 400},
    ],
)
async def test_an_unusable_retry_after_counts_as_none(headers: dict[str, str]) -> None:
    async with served(refusal(429, **headers)) as (upstream, provider):
        assert (await failure(provider)).retry_after is None
        assert len(upstream.requests) == 3


async def test_a_retry_after_in_the_past_means_now() -> None:
    async with served(refusal(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), says("fine")) as (
        _,
        provider,
    ):
        assert await text(provider) == "fine"


async def test_a_storm_of_refusals_is_not_made_worse_by_retries() -> None:
    async with served(refusal(429)) as (upstream, provider):
        errors = await asyncio.gather(*(failure(provider) for _ in range(200)))
        assert {type(error) for error in errors} == {ProviderRateLimitError}
        assert 200 < len(upstream.requests) <= 240


async def test_the_retry_budget_fills_again_with_requests_that_need_none() -> None:
    async with served(*([refusal(429)] * 60), says("fine")) as (upstream, provider):
        while len(upstream.requests) < 60:
            await asyncio.gather(
                *(failure(provider) for _ in range(min(10, 60 - len(upstream.requests)))),
                return_exceptions=True,
            )
        before = len(upstream.requests)
        await asyncio.gather(*(text(provider) for _ in range(30)))
        upstream.answers = (*([refusal(429)] * (len(upstream.requests) + 1)), says("fine"))
        assert await text(provider) == "fine"
        assert len(upstream.requests) == before + 32


async def test_each_provider_has_a_retry_budget_of_its_own() -> None:
    async with Upstream(refusal(503)) as upstream, HttpClient(first_delay=0.001) as http:
        for name in ("one", "two"):
            before = len(upstream.requests)
            for _ in range(40):
                with pytest.raises(ProviderUnavailableError):
                    async with http.post(
                        HttpTarget(name, upstream.url), b"{}", deadline=time.monotonic() + 5
                    ):
                        pass
            assert RETRY_BUDGET - 1 <= len(upstream.requests) - before - 40 <= RETRY_BUDGET + 5


# Errors


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with (
        Upstream(says("stolen")) as elsewhere,
        served(reply(status, b"", location=f"{elsewhere.url}/v1")) as (upstream, provider),
    ):
        error = await failure(provider)
        assert isinstance(error, ProviderUnavailableError)
        assert elsewhere.url not in error.message
        assert (len(upstream.requests), elsewhere.connections) == (1, 0)


async def test_a_name_that_does_not_resolve_is_told() -> None:
    async with HttpClient(max_retries=0) as http:
        error = await failure(OpenAICompatible(http, base_url="http://unknown.invalid/v1"))
        assert isinstance(error, ProviderUnavailableError)
        assert error.message == "The host name of openai cannot be resolved."


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999/v1", "http://[bad/v1", "http:///v1"])
async def test_an_address_that_is_none_is_told_at_once(address: str) -> None:
    async with HttpClient(first_delay=30) as http:
        error = await asyncio.wait_for(
            failure(OpenAICompatible(http, base_url=address), seconds=100), 1
        )
        assert isinstance(error, ProviderUnavailableError)
        assert error.message == "The address of openai is not a valid URL."


@pytest.mark.parametrize(
    "junk", [b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"]
)
async def test_an_answer_that_is_not_http_is_an_error(junk: bytes) -> None:
    async with served([junk, "close"], max_retries=0) as (_, provider):
        assert isinstance(await failure(provider), UpstreamError)


async def test_a_chunk_of_impossible_size_is_an_error_within_the_limits() -> None:
    async with served(
        [head(), 0.02, b"zz\r\n", asyncio.Event()], timeouts=Timeouts(first_byte=0.3)
    ) as (_, provider):
        assert isinstance(await failure(provider), ProviderProtocolError | ProviderTimeoutError)


async def test_a_body_without_length_ends_with_its_connection() -> None:
    body = b"data: " + json.dumps(delta("stop", content="Hi")).encode()
    async with served([head(chunked=False) + body, "close"]) as (_, provider):
        assert await text(provider) == "Hi"


async def test_a_clean_end_without_a_finish_reason_is_an_error() -> None:
    for actions in (
        [event(delta(content="x")), END],
        [chunk(b": nothing\n\n"), END],
        [DONE, END],
    ):
        async with served([head(), *actions], says("fine")) as (upstream, provider):
            error = await failure(provider)
            assert isinstance(error, ProviderProtocolError)
            assert error.message == "The answer of openai ended without a finish reason."
            assert len(upstream.requests) == 1


async def test_a_finish_needs_no_done() -> None:
    async with served([head(), event(delta("length", content="x")), END]) as (_, provider):
        assert (await finish(provider.stream(question()))).reason == "length"


# GET


async def test_json_is_got_however_it_is_cut() -> None:
    whole = reply(200, {"models": ["m" * 100_000]})[0]
    assert isinstance(whole, bytes)
    async with Upstream([whole[:1000], 0.02, whole[1000:]]) as upstream, HttpClient() as http:
        assert await http.get_json(HttpTarget("ollama", upstream.url), timeout=2) == {
            "models": ["m" * 100_000]
        }


@pytest.mark.parametrize("body", [b"", b"no", HTML, b'"\xff"', b"[" * 10_000])
async def test_what_is_got_has_to_be_json(body: bytes) -> None:
    async with Upstream(reply(200, body)) as upstream, HttpClient() as http:
        with pytest.raises(
            ProviderProtocolError, match="ollama answered with something that is not JSON"
        ):
            await http.get_json(HttpTarget("ollama", upstream.url), timeout=2)


@pytest.mark.parametrize("lead", [[], [head(content_type="application/json")]])
async def test_getting_has_its_own_deadline(lead: list[Action]) -> None:
    async with Upstream([*lead, asyncio.Event()]) as upstream, HttpClient() as http:
        with pytest.raises(
            ProviderTimeoutError, match=r"^ollama did not answer within 0\.1 seconds\.$"
        ):
            await http.get_json(HttpTarget("ollama", upstream.url), timeout=0.1)


async def test_what_is_refused_is_an_error_when_getting_too() -> None:
    async with Upstream(reply(404, {"error": "nothing here"})) as upstream, HttpClient() as http:
        with pytest.raises(ProviderRefusedError, match="ollama: nothing here"):
            await http.get_json(HttpTarget("ollama", upstream.url), timeout=2)
        with pytest.raises(ProviderUnavailableError, match="cannot be reached"):
            await http.get_json(HttpTarget("ollama", "http://127.0.0.1:1"), timeout=2)


async def test_getting_uses_the_proxy_of_the_environment_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Upstream(reply(200, [1])) as upstream, HttpClient() as http:
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("http_proxy", upstream.url)
        assert await http.get_json(
            HttpTarget("ollama", "http://got.invalid/api/tags"), timeout=2
        ) == [1]
        assert upstream.requests[0].path == "http://got.invalid/api/tags"


async def fetched(url: str, *, limit: int = 1000, timeout: float = 2) -> bytes:
    async with HttpClient() as http:
        return await http.fetch(url, limit_bytes=limit, timeout=timeout)


async def test_a_body_is_fetched_however_it_is_cut_up_to_its_limit() -> None:
    whole = reply(200, b"x" * 1000)[0]
    assert isinstance(whole, bytes)
    async with Upstream([whole[:500], 0.02, whole[500:]]) as upstream:
        assert await fetched(f"{upstream.url}/keys?of=one") == b"x" * 1000
        assert (upstream.requests[0].method, upstream.requests[0].path) == ("GET", "/keys?of=one")


@pytest.mark.parametrize("answer", [reply(200, b"x" * 1001), endless([head()], chunk(b"x" * 100))])
async def test_no_more_than_the_limit_is_fetched(answer: Iterable[Action]) -> None:
    async with Upstream(answer) as upstream:
        with pytest.raises(
            ProviderProtocolError, match=r"^127\.0\.0\.1:\d+ answered with more than 1000 bytes\.$"
        ):
            await fetched(upstream.url)


@pytest.mark.parametrize("status", [201, 204, 304, 400, 401, 404, 429, 500])
async def test_nothing_but_200_is_fetched_and_its_words_are_not_repeated(status: int) -> None:
    async with Upstream(reply(status, b"" if status in (204, 304) else HTML)) as upstream:
        with pytest.raises(
            UpstreamError, match=rf"^127\.0\.0\.1:\d+ answered with the status {status}\.$"
        ):
            await fetched(upstream.url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_within_the_server_is_followed(status: int) -> None:
    async with Upstream(reply(status, location="../new?a=1"), reply(200, b"found")) as upstream:
        assert await fetched(f"{upstream.url}/old/path") == b"found"
        assert [request.path for request in upstream.requests] == ["/old/path", "/new?a=1"]


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2/",
        "//127.0.0.2/",
        "https://127.0.0.1/",
        "http://127.0.0.1:1/",
        "file:///etc/passwd",
        "http://[",
        "mailto:x",
    ],
)
async def test_a_redirect_to_another_server_is_not_followed(location: str) -> None:
    async with Upstream(reply(302, location=location)) as upstream:
        with pytest.raises(ProviderProtocolError, match="redirects to another server"):
            await fetched(upstream.url)
        assert len(upstream.requests) == 1


async def test_redirects_come_to_an_end() -> None:
    async with Upstream(reply(302, location="/again")) as upstream:
        with pytest.raises(ProviderProtocolError, match="redirects too often"):
            await fetched(upstream.url)
        assert len(upstream.requests) == 6


@pytest.mark.parametrize("lead", [[], [head()], [head(), chunk(b"x")]])
async def test_fetching_has_its_own_deadline(lead: list[Action]) -> None:
    async with Upstream([*lead, asyncio.Event()]) as upstream:
        with pytest.raises(ProviderTimeoutError, match=r"did not answer within 0\.1 seconds\.$"):
            await fetched(upstream.url, timeout=0.1)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://[",
        "nowhere",
        "http://user:secret@127.0.0.1:1/",
        "ftp://127.0.0.1/x",
    ],
)
async def test_what_cannot_be_fetched_is_an_error_of_the_upstream(url: str) -> None:
    with pytest.raises(ProviderUnavailableError) as caught:
        await fetched(url)
    assert "secret" not in caught.value.message


async def test_an_answer_that_breaks_off_is_not_fetched() -> None:
    async with Upstream([head(), chunk(b"x"), "reset"]) as upstream:
        with pytest.raises(UpstreamError):
            await fetched(upstream.url)


async def test_an_answer_without_end_is_an_error_of_the_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_module, "MAX_ANSWER_BYTES", 100_000)
    answer = endless([head(), event(delta(content="Hi"))], chunk(b": " + b"x" * 5000 + b"\n\n"))
    async with served(answer) as (_, provider):
        error = await failure(provider)
    assert isinstance(error, ProviderProtocolError)
    assert error.message.startswith("The answer of openai is larger than")


async def test_a_compressed_answer_is_refused_as_it_was_not_asked_for() -> None:
    body = gzip.compress(b"data: " + b"x" * 10_000_000)
    async with served([head(content_encoding="gzip"), chunk(body), END]) as (upstream, provider):
        with pytest.raises(ProviderProtocolError, match=r"compressed its answer \(gzip\)"):
            await text(provider)
    assert upstream.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["identity", "Identity", "utf-8", "none", ""])
async def test_an_encoding_that_is_no_compression_is_ignored(encoding: str) -> None:
    answer = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n'
    async with served([head(content_encoding=encoding), chunk(answer), END]) as (_, provider):
        assert await text(provider) == "hi"
