"""What a key and its users may ask, counted in one process and in PostgreSQL for several."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, exc, text

from ai_agent_service.auth.principal import UNLIMITED, Key, Limits, Principal
from ai_agent_service.core.errors import RateLimitError
from ai_agent_service.limits.limiter import (
    NOT_LIMITED,
    RUN_GRACE,
    SWEEP_THRESHOLD,
    Admission,
    InProcessLimiter,
    Limiter,
)
from ai_agent_service.limits.postgres import SharedLimiter, open_limiter
from ai_agent_service.storage.database import Database
from ai_agent_service.storage.engine import Work
from ai_agent_service.storage.migrate import upgrade
from ai_agent_service.storage.postgres import PostgresEngine
from ai_agent_service.storage.sqlite import SqliteEngine
from ai_agent_service.storage.url import DatabaseUrl, parse_database_url
from tests.support.events import until
from tests.support.postgres import DatabaseUnderTest, PgBouncer, PostgresServer

T = TypeVar("T")
BOTH_POSTGRES = pytest.mark.parametrize("database", ["postgres18", "replicated"], indirect=True)

_numbers = itertools.count()


def caller(limits: Limits = UNLIMITED, of_users: Limits = UNLIMITED) -> Principal:
    """Who calls with a key of these limits."""
    return Principal(Key(key_id="k", name="a key", tenant="t", limits=limits, user_limits=of_users))


async def ask(
    limiter: Limiter,
    principal: Principal,
    user: str = "ada",
    *,
    tokens: int = 0,
    seconds: float = 100,
) -> Admission:
    """The admission of one more run."""
    return await limiter.admit(
        principal, user, run_id=f"run_{next(_numbers)}", tokens=tokens, seconds=seconds
    )


async def is_admitted(
    limiter: Limiter, principal: Principal, user: str = "ada", *, tokens: int = 0
) -> bool:
    """Whether one more run is."""
    try:
        await ask(limiter, principal, user, tokens=tokens)
    except RateLimitError:
        return False
    return True


async def remaining(limiter: Limiter, principal: Principal, what: str, user: str = "ada") -> int:
    """What is left after a run that takes no tokens."""
    return int((await ask(limiter, principal, user)).headers[f"x-ratelimit-remaining-{what}"])


class Clock:
    """A time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Kept:
    """A limiter, and how time passes for it."""

    def __init__(self, limiter: Limiter, passes: Callable[[float], Awaitable[None]]) -> None:
        self.limiter = limiter
        self.passes = passes


class Forgetful(PostgresEngine):
    """A server that commits and is gone before it says so, as often as `times` says."""

    times = 0

    def run(self, work: Work[T], *, write: bool, timeout: float | None = None) -> asyncio.Future[T]:
        """As usual, and then the connection is lost."""
        return asyncio.create_task(self._lost(work, write=write, timeout=timeout))

    async def _lost(self, work: Work[T], *, write: bool, timeout: float | None) -> T:
        done = await super().run(work, write=write, timeout=timeout)
        if write and self.times:
            self.times -= 1
            raise exc.DBAPIError(
                "COMMIT", None, ConnectionError("lost"), connection_invalidated=True
            )
        return done


@asynccontextmanager
async def opened(
    url: str,
    *,
    pool_size: int = 4,
    timeout: float = 10,
    engine: type[PostgresEngine] = PostgresEngine,
) -> AsyncGenerator[Database, None]:
    """The database at an address as one process sees it."""

    async def prepare(engine: Any) -> None:
        await upgrade(engine)

    database = Database(
        engine(parse_database_url(url), pool_size=pool_size, timeout=timeout),
        timeout=timeout,
        prepare=prepare,
    )
    await database.open()
    try:
        yield database
    finally:
        async with asyncio.timeout(30):
            await database.close()


@asynccontextmanager
async def replicas(url: str) -> AsyncGenerator[tuple[SharedLimiter, SharedLimiter], None]:
    """The limiters of two processes on one database."""
    async with (
        opened(url) as one,
        opened(url) as two,
        SharedLimiter(one) as first,
        SharedLimiter(two) as second,
    ):
        yield first, second


async def shift(database: Database, seconds: float) -> None:
    """Has what is stored be older by so many seconds."""

    def work(connection: Connection) -> None:
        levels = (
            "UPDATE limit_levels SET requests_until = requests_until - :s, tokens_until ="
            " tokens_until - :s"
        )
        for statement in (levels, "UPDATE limit_runs SET until = until - :s"):
            connection.execute(text(statement), {"s": seconds}).close()

    await database.write(work)


def empty(connection: Connection) -> None:
    """Work that forgets all that was counted."""
    connection.execute(text("TRUNCATE limit_levels, limit_runs")).close()


async def count(database: Database, table: str) -> int:
    """How many rows a table has."""
    found: int = await database.read(
        lambda connection: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
    )
    return found


@pytest.fixture(scope="module")
def migrated(postgres_18: PostgresServer) -> str:
    """The address of a database of PostgreSQL 18 that the tests here share, to be made once."""
    return postgres_18.url(postgres_18.new_database())


@pytest.fixture
async def address(migrated: str) -> str:
    """The address of a database in which nothing is counted."""
    async with opened(migrated) as database:
        await database.write(empty)
    return migrated


@pytest.fixture(params=["in process", "shared"])
async def kept(request: pytest.FixtureRequest) -> AsyncGenerator[Kept, None]:
    """A limiter of each kind."""
    if request.param == "in process":
        clock = Clock()

        async def passes(seconds: float) -> None:
            clock.now += seconds

        yield Kept(InProcessLimiter(clock=clock), passes)
        return
    async with (
        opened(request.getfixturevalue("migrated")) as database,
        SharedLimiter(database) as limiter,
    ):
        await database.write(empty)
        yield Kept(limiter, lambda seconds: shift(database, seconds))


# What fits.


async def test_a_minutes_requests_fit_at_once_and_then_one_each_time_one_is_earned(
    kept: Kept,
) -> None:
    principal = caller(Limits(requests=6))
    assert [await is_admitted(kept.limiter, principal) for _ in range(8)] == [True] * 6 + [
        False
    ] * 2
    for _ in range(3):
        await kept.passes(10)
        assert [await is_admitted(kept.limiter, principal) for _ in range(2)] == [True, False]
    await kept.passes(1000)
    assert [await is_admitted(kept.limiter, principal) for _ in range(7)] == [True] * 6 + [False]


async def test_as_many_tokens_as_a_minute_has_fit_at_once(kept: Kept) -> None:
    principal = caller(Limits(tokens=60))
    assert [
        await is_admitted(kept.limiter, principal, tokens=tokens) for tokens in (50, 20, 10, 10)
    ] == [True, False, True, False]
    await kept.passes(20)
    assert [await is_admitted(kept.limiter, principal, tokens=tokens) for tokens in (30, 20)] == [
        False,
        True,
    ]


async def test_a_run_that_may_take_more_tokens_than_a_minute_has_waits_until_all_are_there(
    kept: Kept,
) -> None:
    principal = caller(Limits(tokens=60))
    assert await is_admitted(kept.limiter, principal, tokens=5000)
    await kept.passes(50)
    with pytest.raises(RateLimitError) as refusal:
        await ask(kept.limiter, principal, tokens=5000)
    assert refusal.value.retry_after == pytest.approx(10, abs=2)
    await kept.passes(10)
    assert await is_admitted(kept.limiter, principal, tokens=5000)


async def test_so_many_runs_may_be_under_way(kept: Kept) -> None:
    principal = caller(Limits(parallel=2))
    first, _ = await ask(kept.limiter, principal), await ask(kept.limiter, principal)
    with pytest.raises(
        RateLimitError, match="This key has 2 parallel runs under way and may have 2"
    ) as refusal:
        await ask(kept.limiter, principal)
    assert (refusal.value.retry_after, refusal.value.headers) == (1, {})
    await first.settle(None)
    assert [await is_admitted(kept.limiter, principal) for _ in range(2)] == [True, False]


async def test_a_run_of_a_process_that_died_does_not_count_for_ever(kept: Kept) -> None:
    principal = caller(Limits(parallel=1))
    await ask(kept.limiter, principal, seconds=100)
    await kept.passes(100)
    assert not await is_admitted(kept.limiter, principal)
    await kept.passes(RUN_GRACE)
    assert [await is_admitted(kept.limiter, principal) for _ in range(2)] == [True, False]


async def test_each_user_has_limits_of_their_own(kept: Kept) -> None:
    principal = caller(of_users=Limits(requests=1))
    assert [
        await is_admitted(kept.limiter, principal, user)
        for user in ("ada", "ben", "ada", "ben\0", "eve\ud800")
    ] == [
        True,
        True,
        False,
        True,
        True,
    ]


async def test_nothing_is_charged_where_one_limit_refuses(kept: Kept) -> None:
    principal = caller(Limits(requests=10, tokens=100, parallel=3), Limits(requests=2))
    assert await remaining(kept.limiter, principal, "requests", "ben") == 1
    assert await remaining(kept.limiter, principal, "requests") == 1
    assert await remaining(kept.limiter, principal, "requests") == 0
    for user in ("ben", "ada"):
        with pytest.raises(RateLimitError):
            await ask(kept.limiter, principal, user, tokens=90)  # three runs are under way
    await kept.passes(100 + RUN_GRACE)
    for _ in range(2):
        await (await ask(kept.limiter, principal, tokens=50)).settle(None)
    for _ in range(5):
        with pytest.raises(
            RateLimitError, match="This user has used up its limit of 2 requests a minute"
        ):
            await ask(kept.limiter, principal)
    admission = await ask(kept.limiter, caller(Limits(requests=10, tokens=100, parallel=1)))
    assert admission.headers["x-ratelimit-remaining-requests"] == "7"
    assert admission.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_a_refusal_says_which_limit_and_when_to_try_again(kept: Kept) -> None:
    principal = caller(Limits(requests=1))
    await ask(kept.limiter, principal)
    with pytest.raises(
        RateLimitError,
        match=r"This key has used up its limit of 1 requests a minute. Try again in \d\d seconds.",
    ) as refusal:
        await ask(kept.limiter, principal)
    assert refusal.value.retry_after == pytest.approx(60, abs=2)
    principal = caller(of_users=Limits(tokens=100))
    await ask(kept.limiter, principal, tokens=70)
    asked = (
        r"This request may take 70 tokens, and this user has \d\d left of its 100 a minute. Try"
        r" again in \d\d seconds."
    )
    with pytest.raises(RateLimitError, match=asked) as refusal:
        await ask(kept.limiter, principal, tokens=70)
    assert refusal.value.retry_after == pytest.approx(24, abs=2)


async def test_what_may_not_be_asked_at_all_is_refused(kept: Kept) -> None:
    for limits in (Limits(requests=0), Limits(tokens=0), Limits(parallel=0)):
        with pytest.raises(RateLimitError):
            await ask(kept.limiter, caller(limits))


async def test_the_headers_tell_of_the_tightest_limit(kept: Kept) -> None:
    principal = caller(Limits(requests=60, tokens=6000), Limits(requests=10, tokens=60_000))
    admission = await ask(kept.limiter, principal, tokens=1000)
    assert admission.headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5000",
        "x-ratelimit-reset-tokens": "10s",
    }
    with pytest.raises(RateLimitError) as refusal:
        await ask(kept.limiter, principal, tokens=6000)
    assert refusal.value.headers.keys() == admission.headers.keys()
    assert refusal.value.headers["x-ratelimit-remaining-requests"] == "9"


async def test_who_has_no_limits_is_not_counted() -> None:
    assert await ask(InProcessLimiter(), caller()) is NOT_LIMITED
    await NOT_LIMITED.settle(5)
    assert NOT_LIMITED.headers == {}


# What is settled.


async def test_what_was_not_used_is_given_back(kept: Kept) -> None:
    principal = caller(Limits(tokens=6000))
    admission = await ask(kept.limiter, principal, tokens=5000)
    await admission.settle(100)
    assert await remaining(kept.limiter, principal, "tokens") == pytest.approx(5900, abs=100)


async def test_what_was_used_besides_is_charged_past_the_limit(kept: Kept) -> None:
    principal = caller(Limits(tokens=60))
    await (await ask(kept.limiter, principal, tokens=10)).settle(120)
    await kept.passes(60)
    assert await remaining(kept.limiter, principal, "tokens") == pytest.approx(0, abs=2)
    await kept.passes(20)
    assert await remaining(kept.limiter, principal, "tokens") == pytest.approx(20, abs=2)


async def test_what_was_used_besides_is_charged_after_a_long_run_too(kept: Kept) -> None:
    principal = caller(Limits(tokens=60))
    admission = await ask(kept.limiter, principal, tokens=10)
    await kept.passes(90)
    await admission.settle(40)
    assert await remaining(kept.limiter, principal, "tokens") == pytest.approx(30, abs=2)


async def test_a_reservation_stays_where_nobody_knows_what_was_used(kept: Kept) -> None:
    principal = caller(Limits(tokens=60))
    await (await ask(kept.limiter, principal, tokens=50)).settle(None)
    assert await remaining(kept.limiter, principal, "tokens") == pytest.approx(10, abs=2)


async def test_a_run_is_settled_once(kept: Kept) -> None:
    principal = caller(Limits(tokens=6000, parallel=2))
    first, _ = await ask(kept.limiter, principal, tokens=1000), await ask(kept.limiter, principal)
    for used in (500, 0, None, 5000):
        await first.settle(used)
    assert await remaining(kept.limiter, principal, "tokens") == pytest.approx(5500, abs=100)
    assert not await is_admitted(kept.limiter, principal)


async def test_the_order_in_which_runs_are_settled_does_not_matter(kept: Kept) -> None:
    used = (0, 900, 2000, None)
    for place, order in enumerate(itertools.permutations(range(4))):
        user = f"user-{place}"
        principal = caller(of_users=Limits(tokens=6000, parallel=4))
        runs = [await ask(kept.limiter, principal, user, tokens=1000) for _ in used]
        for number in order:
            await runs[number].settle(used[number])
        assert await remaining(kept.limiter, principal, "tokens", user) == pytest.approx(
            2100, abs=100
        )


# The rule itself.


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 50), st.lists(st.integers(0, 20_000), max_size=150))
def test_never_more_is_admitted_than_was_earned_nor_less(rate: int, pauses: list[int]) -> None:
    async def asked() -> None:
        clock = Clock()
        limiter, principal = InProcessLimiter(clock=clock), caller(Limits(requests=rate))
        earned, now, admitted = Fraction(rate), 0, list[int]()
        for pause in pauses:
            now += pause
            earned = min(Fraction(rate), earned + Fraction(pause * rate, 60_000))
            clock.now = 1_800_000_000 + now / 1000
            if await is_admitted(limiter, principal):
                admitted.append(now)
                assert earned > Fraction(98, 100)
                earned -= 1
            else:
                assert earned < 1
        for first, last in itertools.combinations_with_replacement(range(len(admitted)), 2):
            assert last - first + 1 <= rate + Fraction(
                (admitted[last] - admitted[first]) * rate, 60_000
            ) + Fraction(2, 100)

    asyncio.run(asked())


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5000),
    st.lists(
        st.tuples(st.integers(0, 3000), st.integers(0, 6000), st.integers(0, 9000)), max_size=60
    ),
)
def test_no_more_tokens_are_used_in_the_long_run_than_were_earned(
    rate: int, runs: list[tuple[int, int, int]]
) -> None:
    """Runs that use at most what was reserved for them, each settled at some time after others have
    begun."""

    async def asked() -> None:
        clock = Clock()
        limiter, principal = InProcessLimiter(clock=clock), caller(Limits(tokens=rate))
        started, used, open_runs = clock.now, 0, list[tuple[Admission, int]]()
        for pause, reserved, part in runs:
            clock.now += pause / 100
            tokens = min(reserved, rate)
            try:
                admission = await ask(limiter, principal, tokens=tokens)
            except RateLimitError:
                pass
            else:
                open_runs.append((admission, min(part, tokens)))
            if part % 2 and open_runs:
                admission, tokens = open_runs.pop(part % len(open_runs))
                await admission.settle(tokens)
                used += tokens
            assert used <= rate + (clock.now - started) * rate / 60 + 1

    asyncio.run(asked())


@pytest.mark.parametrize("rate", [7, 60, 333, 1000, 9999])
async def test_a_burst_is_admitted_to_the_last_request_whatever_the_rate(rate: int) -> None:
    limiter, principal = InProcessLimiter(clock=Clock()), caller(Limits(requests=rate))
    assert [await is_admitted(limiter, principal) for _ in range(rate + 1)] == [True] * rate + [
        False
    ]


async def test_users_who_are_gone_are_not_kept() -> None:
    clock = Clock()
    limiter, principal = (
        InProcessLimiter(clock=clock),
        caller(of_users=Limits(requests=10, parallel=5)),
    )
    await ask(limiter, principal, "still at it", seconds=10_000)
    for number in range(5 * SWEEP_THRESHOLD):
        clock.now += 0.1
        await (await ask(limiter, principal, f"user-{number}")).settle(None)
        assert len(limiter) <= SWEEP_THRESHOLD
    assert [await is_admitted(limiter, principal, "still at it") for _ in range(5)] == [
        True
    ] * 4 + [False]


async def test_a_debt_outlives_that_its_subject_was_not_kept() -> None:
    clock = Clock()
    limiter, principal = InProcessLimiter(clock=clock), caller(of_users=Limits(tokens=60))
    admission = await ask(limiter, principal, "slow", tokens=10)
    for number in range(2 * SWEEP_THRESHOLD):
        clock.now += 1
        await ask(limiter, principal, f"user-{number}")
    await admission.settle(70)
    assert not await is_admitted(limiter, principal, "slow", tokens=1)


# Several processes.


@BOTH_POSTGRES
async def test_replicas_together_admit_what_one_would(database: DatabaseUnderTest) -> None:
    principal = caller(Limits(requests=20))
    async with replicas(database.url) as limiters:
        began = time.monotonic()
        admitted = await asyncio.gather(
            *(is_admitted(limiters[number % 2], principal) for number in range(60))
        )
        assert 20 <= sum(admitted) <= 20 + (time.monotonic() - began) / 3


@BOTH_POSTGRES
async def test_replicas_together_have_no_more_runs_under_way_than_one_may(
    database: DatabaseUnderTest,
) -> None:
    principal = caller(Limits(parallel=3), Limits(tokens=1_000_000))
    running, most = 0, 0

    async def run(limiter: Limiter, user: str) -> None:
        nonlocal running, most
        for _ in range(4):
            with contextlib.suppress(RateLimitError):
                admission = await ask(limiter, principal, user, tokens=10)
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1
                await admission.settle(5)

    async with replicas(database.url) as limiters, asyncio.timeout(30):
        await asyncio.gather(
            *(run(limiters[number % 2], f"user-{number % 5}") for number in range(16))
        )
        assert 1 <= most <= 3
        at_once = await asyncio.gather(
            *(
                is_admitted(limiters[number % 2], principal, f"user-{number}")
                for number in range(20)
            )
        )
        assert sum(at_once) == 3


async def test_many_users_of_one_key_do_not_block_each_other(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    principal = caller(
        Limits(requests=10_000, tokens=1_000_000, parallel=1000),
        Limits(requests=1000, tokens=100_000, parallel=100),
    )

    async def run(limiter: SharedLimiter, user: str) -> None:
        for _ in range(3):
            admission = await ask(limiter, principal, user, tokens=100)
            await asyncio.gather(admission.settle(50), admission.settle(50), limiter.clean_up())

    async with replicas(address) as limiters:
        async with asyncio.timeout(20):
            await asyncio.gather(
                *(run(limiters[number % 2], f"user-{number % 7}") for number in range(30))
            )
        admission = await ask(limiters[0], principal)
    assert caplog.records == []
    assert int(admission.headers["x-ratelimit-remaining-requests"]) >= 984


async def test_a_commit_that_was_not_heard_of_counts_once(address: str) -> None:
    principal = caller(Limits(requests=6, tokens=6000))
    async with opened(address, engine=Forgetful) as seen, SharedLimiter(seen) as limiter:
        assert isinstance(seen.primary, Forgetful)
        seen.primary.times = 2
        admission = await ask(limiter, principal, tokens=1000)
        assert admission.headers["x-ratelimit-remaining-requests"] == "5"
        seen.primary.times = 2
        await admission.settle(3000)
        admission = await ask(limiter, principal)
        assert admission.headers["x-ratelimit-remaining-requests"] == "4"
        assert int(admission.headers["x-ratelimit-remaining-tokens"]) == pytest.approx(
            3000, abs=100
        )


async def test_a_caller_who_leaves_before_the_run_begins_takes_no_place(address: str) -> None:
    principal = caller(Limits(tokens=6000, parallel=1))
    async with opened(address) as seen:
        async with SharedLimiter(seen) as limiter:
            for turns in (0, 1, 2, 4, 8, 16):
                asking = asyncio.create_task(ask(limiter, principal, tokens=6000))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
        assert await count(seen, "limit_runs") == 0
        async with SharedLimiter(seen) as limiter:
            assert await is_admitted(limiter, principal, tokens=5000)


async def test_a_caller_who_is_cancelled_while_it_settles_has_settled(address: str) -> None:
    principal = caller(Limits(tokens=6000, parallel=1))
    async with opened(address) as seen, SharedLimiter(seen) as limiter:
        admission = await ask(limiter, principal, tokens=6000)
        settling = asyncio.create_task(admission.settle(0))
        await asyncio.sleep(0)
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        await admission.settle(6000)
        assert await is_admitted(limiter, principal, tokens=6000)


async def test_what_is_as_if_it_had_never_been_asked_is_deleted(address: str) -> None:
    principal = caller(of_users=Limits(requests=10, parallel=3))
    async with replicas(address) as (limiter, other), opened(address) as seen:
        late = await ask(limiter, principal, "early")
        await shift(seen, 100 + RUN_GRACE)
        await ask(limiter, principal, "now")
        assert sorted(await asyncio.gather(limiter.clean_up(), other.clean_up()))[-1] >= 1
        assert (await count(seen, "limit_levels"), await count(seen, "limit_runs")) == (1, 1)
        await late.settle(3)
        assert (await count(seen, "limit_levels"), await count(seen, "limit_runs")) == (1, 1)


async def test_a_clock_that_is_set_back_blocks_nobody_for_long(address: str) -> None:
    """What was charged before is in the future then."""
    async with opened(address) as database, SharedLimiter(database) as limiter:
        for limits, tokens in ((Limits(requests=2), 0), (Limits(tokens=100), 50)):
            await database.write(empty)
            principal = caller(limits)
            for _ in range(2):
                await (await ask(limiter, principal, tokens=tokens)).settle(tokens)
            await shift(database, -3 * 86_400)
            with pytest.raises(RateLimitError) as refusal:
                await ask(limiter, principal, tokens=tokens)
            assert refusal.value.retry_after is not None
            assert refusal.value.retry_after <= 120
        await database.write(empty)
        principal = caller(Limits(parallel=1))
        await ask(limiter, principal)  # its process dies
        await shift(database, -3 * 86_400)
        assert await is_admitted(limiter, principal)


async def test_it_works_through_a_pooler(postgres_18: PostgresServer) -> None:
    if PgBouncer.program() is None:
        pytest.skip("there is no pgbouncer here; `make test` fetches it where apt can")
    pooler = PgBouncer(postgres_18).start()
    principal = caller(Limits(requests=20, tokens=1000), Limits(parallel=30))
    try:
        async with replicas(pooler.url(postgres_18.new_database())) as limiters:
            began = time.monotonic()
            admitted = await asyncio.gather(
                *(is_admitted(limiters[number % 2], principal, tokens=10) for number in range(40))
            )
            assert 20 <= sum(admitted) <= 20 + (time.monotonic() - began) / 3
    finally:
        pooler.remove()


# While the database is away.


async def test_a_database_that_is_away_refuses_nobody(
    own_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    principal = caller(Limits(requests=3, parallel=2))
    async with opened(own_postgres.url(), timeout=2) as seen, SharedLimiter(seen) as limiter:
        before = [await ask(limiter, principal), await ask(limiter, principal)]
        await shift(
            seen, 0
        )  # a commit that waits for the disk, which those of limits before it then are on too
        await asyncio.to_thread(own_postgres.kill)
        async with asyncio.timeout(10):
            away = await ask(limiter, principal)
            await before[0].settle(None)
            assert [await is_admitted(limiter, principal) for _ in range(2)] == [True, False]
            await away.settle(None)
            assert [await is_admitted(limiter, principal) for _ in range(2)] == [True, False]
        messages = [record.getMessage() for record in caplog.records]
        assert (messages.count("limits.not_shared"), messages.count("limits.settled_later")) == (
            1,
            1,
        )
        await asyncio.to_thread(own_postgres.start)

        async def settled_later() -> bool:
            return seen.problem is None and await count(seen, "limit_runs") == 1

        await until(settled_later)
        await until(
            lambda: is_admitted(limiter, principal)
        )  # which is the shared limits' third request, though not here
        assert await count(seen, "limit_runs") == 2
        with pytest.raises(RateLimitError, match="requests"):
            await ask(limiter, principal)


async def test_limits_are_those_of_the_process_on_sqlite_and_without_a_database(
    tmp_path: Any,
) -> None:
    sqlite = Database(SqliteEngine(DatabaseUrl("sqlite", f"{tmp_path}/c.db"), timeout=5), timeout=5)
    for database in (None, sqlite):
        async with open_limiter(database) as limiter:
            assert isinstance(limiter, InProcessLimiter)
            assert [await is_admitted(limiter, caller(Limits(requests=1))) for _ in range(2)] == [
                True,
                False,
            ]
    await sqlite.close()


async def test_limits_are_shared_on_postgresql(address: str) -> None:
    async with opened(address) as seen:
        assert isinstance(open_limiter(seen), SharedLimiter)
