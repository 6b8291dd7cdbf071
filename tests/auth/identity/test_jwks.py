"""The keys of an identity provider: how often they are asked for, which of them are used, and what
happens when they are away."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from joserfc.jwk import Key, OctKey, OKPKey, RSAKey
from joserfc.util import int_to_base64

from ai_agent_service.auth.identity.fetch import KeySetStatus
from ai_agent_service.auth.identity.jwks import (
    FAILED_PAUSE,
    FRESH_SECONDS,
    MAX_KEYS,
    MAX_STALE_SECONDS,
    UNKNOWN_PAUSE,
    Jwks,
)
from ai_agent_service.auth.identity.jwt import PinnedAlgorithms
from ai_agent_service.auth.identity.settings import ALGORITHMS
from ai_agent_service.core.bounds import MAX_DOCUMENT_BYTES
from ai_agent_service.core.errors import AccessUnavailableError
from ai_agent_service.core.tasks import Tasks
from tests.support.tokens import (
    DISCOVERY,
    ED448,
    ED25519,
    ISSUER,
    JWKS,
    KEYS,
    P256,
    P384,
    P521,
    RSA,
    RSA_OTHER,
    Provider,
    Time,
    public,
)

OCT = OctKey.import_key("a secret that is in a list of keys", {"kid": "oct"})


class Keys:
    """The keys under test, with the clock and the provider that they have."""

    def __init__(self, tasks: Tasks, *keys: Key, url: str | None = JWKS) -> None:
        self.time = Time()
        self.provider = Provider(*keys)
        self.tasks = tasks
        self.jwks = Jwks(
            ISSUER, url, PinnedAlgorithms(ALGORITHMS), self.provider, tasks, clock=self.time
        )

    @property
    def asked(self) -> int:
        """How often the keys were asked for."""
        return self.provider.asked.count(JWKS)

    async def has(self, key_id: str | None, algorithm: str = "RS256") -> bool:
        """Whether there is such a key."""
        return await self.jwks.find_key(key_id, algorithm) is not None

    async def settled(self) -> None:
        """Waits for what is fetched in the background."""
        await self.tasks.finish()


@asynccontextmanager
async def open_keys(*keys: Key, url: str | None = JWKS) -> AsyncGenerator[Keys, None]:
    async with Tasks() as tasks:
        yield Keys(tasks, *keys, url=url)
    assert len(tasks) == 0


# Which key


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        (RSA, ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (P256, ["ES256"]),
        (P384, ["ES384"]),
        (P521, ["ES512"]),
        (ED25519, ["EdDSA"]),
        (ED448, ["EdDSA"]),
    ],
    ids=["RSA", "P-256", "P-384", "P-521", "Ed25519", "Ed448"],
)
async def test_a_key_is_found_by_its_id_for_the_algorithms_of_its_kind(
    key: Key, algorithms: list[str]
) -> None:
    async with open_keys(*KEYS) as keys:
        assert [name for name in ALGORITHMS if await keys.has(key.kid, name)] == algorithms


async def test_without_an_id_the_only_key_for_the_algorithm_is_meant() -> None:
    async with open_keys(RSA, P256) as keys:
        assert await keys.has(None, "RS256")
        assert await keys.has(None, "ES256")
        assert not await keys.has(None, "ES384")
    async with open_keys(RSA, RSA_OTHER) as keys:
        assert not await keys.has(None)
        assert not await keys.has("")


async def test_keys_of_two_kinds_may_have_one_id() -> None:
    async with open_keys() as keys:
        keys.provider.documents[JWKS] = public(RSA, P256, kid="same")
        assert await keys.has("same", "RS256")
        assert await keys.has("same", "ES256")


WEAK: dict[str, str | list[str]] = {"kty": "RSA", "n": int_to_base64((1 << 1023) + 1), "e": "AQAB"}


@pytest.mark.parametrize(
    "written",
    [
        RSA.as_dict(private=False) | {"use": "enc"},
        RSA.as_dict(private=False) | {"use": "other"},
        RSA.as_dict(private=False) | {"use": None},
        RSA.as_dict(private=False) | {"key_ops": ["encrypt"]},
        RSA.as_dict(private=False) | {"key_ops": []},
        RSA.as_dict(private=False) | {"key_ops": "verify"},
        RSA.as_dict(private=False) | {"alg": "RSA-OAEP"},
        RSA.as_dict(private=False) | {"alg": "RS512"},
        RSA.as_dict(private=False) | {"kid": 5},
        RSA.as_dict(private=False) | {"kty": "EC"},
        RSA.as_dict(private=False) | {"kty": "AKP"},
        RSA.as_dict(private=False) | {"kty": ["RSA"]},
        RSA.as_dict(private=False) | {"n": "="},
        RSA.as_dict(private=False) | {"n": 5},
        RSA.as_dict(private=False) | {"e": ""},
        RSA.as_dict(private=True),
        OCT.as_dict(private=True),
        WEAK,
        P256.as_dict(private=False) | {"crv": "P-999"},
        P256.as_dict(private=False) | {"crv": ["P-256"]},
        P256.as_dict(private=False) | {"x": P384.as_dict(private=False)["x"]},
        P256.as_dict(private=False) | {"crv": "secp256k1"},
        OKPKey.generate_key("X25519").as_dict(private=False),
        {},
        [],
        None,
        "key",
    ],
    ids=itertools.count(),
)
async def test_what_is_no_key_for_this_is_left_out_and_the_others_are_used(written: Any) -> None:
    unusable = written | {"kid": written.get("kid", "x")} if isinstance(written, dict) else written
    async with open_keys() as keys:
        keys.provider.documents[JWKS] = json.dumps(
            {"keys": [unusable, RSA_OTHER.as_dict(private=False)]}
        ).encode()
        assert await keys.has("other")
        for kid in ("rsa", "p256", "x", "oct"):
            assert not await keys.has(kid)
            assert not await keys.has(kid, "ES256")
            assert not await keys.has(kid, "EdDSA")


async def test_keys_may_say_what_they_are_for() -> None:
    async with open_keys() as keys:
        keys.provider.documents[JWKS] = public(
            RSA, use="sig", key_ops=["verify"], alg="RS256", x5t="AA", more={"a": 1}
        )
        assert await keys.has("rsa")
        assert not await keys.has("rsa", "RS512")


# When they are fetched


async def test_keys_are_fetched_once_for_all_who_wait_and_then_kept() -> None:
    async with open_keys(RSA) as keys:
        assert all(await asyncio.gather(*(keys.has("rsa") for _ in range(50))))
        keys.time.now += FRESH_SECONDS
        assert await keys.has("rsa")
        assert keys.asked == 1


async def test_old_keys_are_used_while_they_are_fetched_anew_once() -> None:
    async with open_keys(RSA) as keys:
        await keys.has("rsa")
        keys.time.now += FRESH_SECONDS + 1
        assert all(await asyncio.gather(*(keys.has("rsa") for _ in range(50))))
        await keys.settled()
        assert keys.asked == 2
        assert await keys.has("rsa")
        assert keys.asked == 2


async def test_a_key_that_was_taken_away_is_gone_once_the_keys_are_fetched_anew() -> None:
    async with open_keys(RSA) as keys:
        await keys.has("rsa")
        keys.provider.documents[JWKS] = public(RSA_OTHER)
        keys.time.now += FRESH_SECONDS + 1
        await keys.has("rsa")
        await keys.settled()
        assert not await keys.has("rsa")
        assert await keys.has("other")


async def test_a_new_key_is_found_at_once() -> None:
    async with open_keys(RSA) as keys:
        await keys.has("rsa")
        keys.provider.documents[JWKS] = public(RSA, RSA_OTHER)
        keys.time.now += UNKNOWN_PAUSE
        assert await keys.has("other")
        assert keys.asked == 2


async def test_a_flood_of_ids_that_are_not_known_costs_one_fetch_in_half_a_minute() -> None:
    async with open_keys(RSA) as keys:
        for second in range(int(UNKNOWN_PAUSE * 2)):
            assert not any(
                await asyncio.gather(*(keys.has(f"{second}-{number}") for number in range(20)))
            )
            keys.time.now += 1
        assert keys.asked == 2
        assert await keys.has("rsa")


async def test_who_leaves_does_not_end_the_fetch_of_the_others() -> None:
    async with open_keys(RSA) as keys:
        go = asyncio.Event()
        fetch = keys.provider.__call__

        async def slow(url: str) -> bytes:
            await go.wait()
            return await fetch(url)

        keys.jwks = Jwks(
            ISSUER, JWKS, PinnedAlgorithms(ALGORITHMS), slow, keys.tasks, clock=keys.time
        )
        first, second = asyncio.create_task(keys.has("rsa")), asyncio.create_task(keys.has("rsa"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first], timeout=5)
        go.set()
        assert await asyncio.wait_for(second, 5)
        assert keys.asked == 1


async def test_a_fetch_under_way_ends_with_the_service() -> None:
    async def never(url: str) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError(url)

    before = asyncio.all_tasks()
    async with Tasks(grace=0.01) as tasks:
        Jwks(ISSUER, JWKS, PinnedAlgorithms(ALGORITHMS), never, tasks).prefetch()
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


# When they cannot be had


async def test_without_keys_it_cannot_be_told_who_calls() -> None:
    async with open_keys(RSA) as keys:
        keys.provider.up = False
        for _ in range(50):
            with pytest.raises(AccessUnavailableError) as caught:
                await keys.has("rsa")
            assert caught.value.retry_after == FAILED_PAUSE
        assert keys.asked == 1
        keys.provider.up = True
        keys.time.now += FAILED_PAUSE
        assert await keys.has("rsa")


async def test_to_look_at_keys_that_are_not_there_has_them_fetched() -> None:
    async with open_keys(RSA) as keys:
        keys.provider.up = False
        assert keys.jwks.source == KeySetStatus(False, 0, None, None)
        await keys.settled()
        source = keys.jwks.source
        assert not source.is_usable
        assert source.error == "login.example.com cannot be reached."
        assert keys.asked == 1, "not more often than tokens would have them fetched"
        keys.provider.up = True
        keys.time.now += FAILED_PAUSE
        assert not keys.jwks.source.is_usable
        await keys.settled()
        assert keys.jwks.source == KeySetStatus(True, 1, 0.0, None)


async def test_kept_keys_are_used_for_a_day_while_no_others_can_be_had() -> None:
    async with open_keys(RSA) as keys:
        await keys.has("rsa")
        keys.provider.up = False
        keys.time.now += MAX_STALE_SECONDS
        assert await keys.has("rsa")
        await keys.settled()
        keys.time.now += UNKNOWN_PAUSE
        with pytest.raises(AccessUnavailableError):
            await keys.has("rsa")


async def test_while_keys_cannot_be_had_they_are_not_asked_for_with_each_request() -> None:
    async with open_keys(RSA) as keys:
        await keys.has("rsa")
        keys.provider.up = False
        keys.time.now += FRESH_SECONDS + 1
        for _ in range(int(UNKNOWN_PAUSE)):
            assert await keys.has("rsa")
            await keys.settled()
            keys.time.now += 1
        assert keys.asked == 2


async def test_a_new_key_that_cannot_be_had_is_not_the_callers_fault() -> None:
    async with open_keys(RSA) as keys:
        await keys.has("rsa")
        keys.provider.up = False
        keys.time.now += UNKNOWN_PAUSE
        for _ in range(3):
            with pytest.raises(AccessUnavailableError) as caught:
                await keys.has("other")
            assert caught.value.retry_after == UNKNOWN_PAUSE
        assert keys.asked == 2


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"no",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b"[" * 5000,
        b'{"keys": [' + b"[" * 5000,
        b'{"keys": [' + b", ".join([b"{}"] * (MAX_KEYS + 1)) + b"]}",
        public(RSA_OTHER) + b" " * MAX_DOCUMENT_BYTES,
    ],
    ids=itertools.count(),
)
async def test_a_list_that_is_none_changes_nothing(document: bytes) -> None:
    async with open_keys(RSA) as keys:
        await keys.has("rsa")
        keys.provider.documents[JWKS] = document
        keys.time.now += FRESH_SECONDS + 1
        assert await keys.has("rsa")
        await keys.settled()
        assert await keys.has("rsa")
        assert keys.asked == 2


async def test_a_list_without_keys_says_that_there_are_none() -> None:
    async with open_keys() as keys:
        assert not await keys.has("rsa")


async def test_as_many_keys_as_allowed_are_read() -> None:
    async with open_keys() as keys:
        keys.provider.documents[JWKS] = json.dumps(
            {"keys": [{}] * (MAX_KEYS - 1) + [RSA.as_dict(private=False)]}
        ).encode()
        assert await keys.has("rsa")


# Where they are


async def test_the_discovery_document_tells_where_the_keys_are() -> None:
    async with open_keys(RSA, url=None) as keys:
        assert await keys.has("rsa")
        assert keys.provider.asked == [DISCOVERY, JWKS]


async def test_the_slash_at_the_end_of_an_issuer_is_not_doubled() -> None:
    provider = Provider(RSA)
    provider.documents[DISCOVERY] = json.dumps({"issuer": f"{ISSUER}/", "jwks_uri": JWKS}).encode()
    async with Tasks() as tasks:
        assert await Jwks(
            f"{ISSUER}/", None, PinnedAlgorithms(ALGORITHMS), provider, tasks
        ).find_key("rsa", "RS256")


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": f"{ISSUER}/", "jwks_uri": JWKS},
        {"issuer": "https://evil.example.com", "jwks_uri": JWKS},
        {"issuer": ISSUER, "jwks_uri": JWKS.replace("https", "http")},
        {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"},
        {"issuer": ISSUER, "jwks_uri": "http://169.254.169.254/"},
        {"issuer": ISSUER, "jwks_uri": ""},
        {"issuer": ISSUER, "jwks_uri": None},
        {"issuer": ISSUER},
        {"jwks_uri": JWKS},
        [],
        None,
    ],
    ids=str,
)
async def test_a_discovery_document_that_leads_elsewhere_is_not_followed(document: object) -> None:
    async with open_keys(RSA, url=None) as keys:
        keys.provider.documents[DISCOVERY] = json.dumps(document).encode()
        with pytest.raises(AccessUnavailableError):
            await keys.has("rsa")
        assert keys.provider.asked == [DISCOVERY]


async def test_an_address_that_is_set_is_asked_without_discovery() -> None:
    async with open_keys(RSA) as keys:
        assert await keys.has("rsa")
        assert keys.provider.asked == [JWKS]


def test_a_small_key_of_rsa_would_have_been_read() -> None:
    with pytest.warns(UserWarning, match="Key size"):
        assert RSAKey.import_key(WEAK).raw_value.key_size == 1024
