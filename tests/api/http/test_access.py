"""Who may do what, through the API: keys, scopes, agents, users, and that nothing shows of what is
not theirs."""

import json
import logging
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from joserfc import jwt
from joserfc.jwk import OctKey

from ai_agent_service.api.http.access import check_access_rules
from ai_agent_service.auth.keys.store import KeyStore
from ai_agent_service.auth.principal import Limits
from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.server.application import create_app
from ai_agent_service.storage.encryption import Cipher
from ai_agent_service.storage.opening import open_database
from tests.support.clients import CHAT, asking, read_completion, read_error, read_stream
from tests.support.fake_provider import Script, calls, says
from tests.support.keys import bearer, opened
from tests.support.memory import HELPER
from tests.support.service import configuration, open_client

ENVIRONMENT_KEY = "an-environment-key-1"
OPEN = {"/", "/health", "/health/live", "/health/ready"}
"""The routes that ask nothing."""

SECRET = "a secret of Open WebUI's of 32 bytes or more"


def list_routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route, the agent `helper` and the session `s` for what stands in
    braces."""
    found = [
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]
    found += [
        ("GET", path) for path in ("/docs", "/redoc", "/openapi.json", "/health?detailed=true")
    ]
    names = {"agent_id": "helper", "model": "helper", "session_id": "s"}
    return [
        (method, re.sub(r"\{(\w+)\}", lambda match: names[match[1]], path))
        for method, path in found
    ]


async def ask(client: httpx2.AsyncClient, method: str, path: str, **given: Any) -> httpx2.Response:
    """The answer of a route, which is asked for something sensible."""
    if method == "POST":
        given.setdefault(
            "json",
            {"message": "Hello", "session_id": "s"} if path.startswith("/agents") else asking(),
        )
    return await client.request(method, path, **given)


# Keys


async def test_every_route_but_those_that_tell_nothing_asks_for_a_key(tmp_path: Path) -> None:
    async with opened(tmp_path, api_keys=ENVIRONMENT_KEY) as service:
        routes = list_routes(service.app)
        assert len(routes) > 15
        for method, path in routes:
            response = await ask(service.client, method, path)
            if path in OPEN:
                assert response.status_code == 200, path
                assert "helper" not in response.text
            else:
                assert read_error(response, 401)["code"] == "invalid_api_key", path
                assert response.headers["www-authenticate"] == "Bearer"
            assert (
                await ask(service.client, method, path, headers=bearer(ENVIRONMENT_KEY))
            ).status_code in (200, 404), path


def test_a_route_that_does_not_say_who_may_call_it_is_not_served() -> None:
    router = APIRouter()

    @router.get("/forgotten")
    async def forgotten() -> None:
        """Asks nothing of anybody."""

    with pytest.raises(RuntimeError, match="/forgotten does not say who may call it"):
        check_access_rules(router)


async def test_what_is_no_key_of_use_is_refused_alike(tmp_path: Path) -> None:
    async with opened(tmp_path, api_keys=ENVIRONMENT_KEY) as service:
        known = await service.keys.create("known")
        expired = await service.keys.create("expired", expires_in=timedelta(microseconds=1))
        revoked = await service.keys.create("revoked")
        await service.keys.revoke("revoked")
        other_secret = known.text[:20] + ("A" if known.text[20] != "A" else "B") + known.text[21:]
        attempts: list[dict[str, Any]] = [
            {},
            {"headers": {"Authorization": ""}},
            {"headers": {"Authorization": ENVIRONMENT_KEY}},
            {"headers": {"Authorization": f"Basic {ENVIRONMENT_KEY}"}},
            *({"headers": bearer(text)} for text in ("", "none", "aas_", "' OR 1=1 --", "x" * 600)),
            *(
                {"headers": bearer(text)}
                for text in (
                    expired.text,
                    revoked.text,
                    other_secret,
                    known.text + "A",
                    ENVIRONMENT_KEY[:-1],
                )
            ),
            {"headers": {"Authorization": "Bearer \u00e9".encode()}},
            {"headers": {"x-api-key": "none"}},
            {"headers": {**bearer(ENVIRONMENT_KEY), "x-api-key": known.text}},
            {
                "headers": [
                    ("Authorization", f"Bearer {ENVIRONMENT_KEY}"),
                    ("Authorization", f"Bearer {known.text}"),
                ]
            },
            {
                "params": {
                    "api_key": ENVIRONMENT_KEY,
                    "key": ENVIRONMENT_KEY,
                    "access_token": ENVIRONMENT_KEY,
                }
            },
            {
                "headers": {
                    "Cookie": f"Authorization=Bearer {ENVIRONMENT_KEY}; api_key={ENVIRONMENT_KEY}"
                }
            },
        ]
        bodies = set()
        for attempt in attempts:
            response = await service.client.get("/v1/models", **attempt)
            read_error(response, 401)
            bodies.add(
                (response.text, tuple(name for name in response.headers if name != "x-request-id"))
            )
        assert len(bodies) == 1
        for headers in (
            bearer(known.text),
            {"x-api-key": known.text},
            {"Authorization": f"bearer  {known.text}"},
            {"x-api-key": ENVIRONMENT_KEY},
        ):
            assert (await service.client.get("/v1/models", headers=headers)).status_code == 200


async def test_a_key_is_for_what_its_scopes_say(tmp_path: Path) -> None:
    needs = {"GET": "memory:read", "DELETE": "memory:delete", "POST": "chat"}
    async with opened(tmp_path) as service:
        keys = {
            scope: await service.key(scope, scopes=[scope])
            for scope in ("chat", "memory:read", "memory:delete", "admin")
        }
        for method, path in list_routes(service.app):
            any_key = path in OPEN or path in (
                "/v1/models",
                "/v1/models/helper",
                "/agents",
                "/agents/helper",
            )
            admin = path in (
                "/admin/reload",
                "/docs",
                "/redoc",
                "/openapi.json",
                "/metrics",
                "/health?detailed=true",
            )
            for scope, headers in keys.items():
                response = await ask(service.client, method, path, headers=headers)
                if any_key or scope == ("admin" if admin else needs[method]):
                    assert response.status_code in (200, 404), (path, scope)
                else:
                    error = read_error(response, 403)
                    assert (error["code"], error["type"]) == (
                        "insufficient_scope",
                        "permission_error",
                    )


async def test_an_agent_that_a_key_is_not_for_is_as_one_that_there_is_not(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        headers = await service.key("narrow", agents=["helper"])
        assert [
            model["id"]
            for model in (await service.client.get("/v1/models", headers=headers)).json()["data"]
        ] == ["helper"]
        assert [
            agent["agent_id"]
            for agent in (await service.client.get("/agents", headers=headers)).json()
        ] == ["helper"]
        for method, path in list_routes(service.app):
            if "helper" not in path:
                continue
            found = [
                await ask(service.client, method, path.replace("helper", name), headers=headers)
                for name in ("other", "absent")
            ]
            assert [read_error(response, 404)["code"] for response in found] == [
                "model_not_found"
            ] * 2
            assert found[0].text == found[1].text
        found = [
            await service.client.post(CHAT, json={**asking(), "model": name}, headers=headers)
            for name in ("other", "absent")
        ]
        assert [read_error(response, 404)["code"] for response in found] == ["model_not_found"] * 2
        assert found[0].text == found[1].text
        read_completion(await service.client.post(CHAT, json=asking(), headers=headers))


async def test_what_a_narrow_key_exports_and_deletes_is_of_its_agents(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        wide, narrow = (
            await service.key("wide", tenant="team"),
            await service.key("narrow", tenant="team", agents=["helper"]),
        )
        for agent in ("helper", "other"):
            asked = {"message": "Hello", "session_id": "s"}
            assert (
                await service.client.post(f"/agents/{agent}/chat", json=asked, headers=wide)
            ).status_code == 200

        async def exported(headers: dict[str, str]) -> list[str]:
            return [
                json.loads(line)["agent_id"]
                for line in (await service.client.get("/memory", headers=headers)).text.splitlines()
            ]

        assert await exported(narrow) == ["helper"]
        assert sorted(await exported(wide)) == ["helper", "other"]
        assert (await service.client.delete("/memory", headers=narrow)).json()["sessions"] == 1
        assert await exported(wide) == ["other"]


async def test_nothing_of_another_tenant_shows(tmp_path: Path) -> None:
    """Every route, asked by one tenant with the ids of the other's and with ids of nobody: the
    answers are the same."""
    script = Script(says("Hi"))
    async with opened(tmp_path, script) as service:
        ada, bob = await service.key("ada"), await service.key("bob")
        told = {"message": "My secret is 42.", "session_id": "of-ada", "user_id": "ada"}
        assert (
            await service.client.post("/agents/helper/chat", json=told, headers=ada)
        ).status_code == 200
        kept = (
            await service.client.get(
                "/agents/helper/conversations/of-ada", params={"user_id": "ada"}, headers=ada
            )
        ).text
        assert "42" in kept
        paths = [
            ("GET", "/agents/helper/conversations/{session}", {"user_id": "{user}"}),
            (
                "GET",
                "/agents/helper/conversations/{session}",
                {"user_id": "{user}", "branches": "true"},
            ),
            ("GET", "/agents/helper/conversations", {"user_id": "{user}"}),
            ("DELETE", "/agents/helper/conversations/{session}", {"user_id": "{user}"}),
            ("GET", "/memory", {"user_id": "{user}"}),
            ("DELETE", "/memory", {"user_id": "{user}"}),
        ]

        def filled(text: str, session: str, user: str) -> str:
            return text.replace("{session}", session).replace("{user}", user)

        for method, path, params in paths:
            answers = []
            for session, user in (("of-ada", "ada"), ("of-nobody", "nobody")):
                given = {name: filled(value, session, user) for name, value in params.items()}
                response = await service.client.request(
                    method, filled(path, session, user), params=given, headers=bob
                )
                answers.append((response.status_code, response.text))
            assert answers[0] == answers[1], path
            assert "42" not in answers[0][1]
        asked = {"message": "What is it?", "session_id": "of-ada", "user_id": "ada"}
        answer = await service.client.post("/agents/helper/chat", json=asked, headers=bob)
        assert answer.status_code == 200
        assert [
            message.text for message in script.requests[-1].messages if message.role != "system"
        ] == ["What is it?"]
        again = {**asking("My secret is 42."), "user": "ada"}
        retried = await service.client.post(
            CHAT,
            json=again,
            headers={**bob, "X-Session-Id": "of-ada", "x-stainless-retry-count": "1"},
        )
        read_completion(retried)
        assert len(script.requests) == 3, "another tenant's answer was told again"
        unchanged = await service.client.get(
            "/agents/helper/conversations/of-ada", params={"user_id": "ada"}, headers=ada
        )
        assert unchanged.text == kept


async def test_a_replacement_of_a_key_reaches_the_same_conversations(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        first = await service.keys.create("first")
        told = {"message": "Hello", "session_id": "s"}
        assert (
            await service.client.post("/agents/helper/chat", json=told, headers=bearer(first.text))
        ).status_code == 200
        second = await service.key("second", tenant=first.stored.key.tenant)
        rotated = bearer((await service.keys.rotate("first")).text)
        for headers in (second, rotated):
            assert (
                await service.client.get("/agents/helper/conversations/s", headers=headers)
            ).status_code == 200


# Without keys


async def test_without_a_key_everything_is_open_to_this_machine(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        for headers in (
            {},
            bearer("none"),
            {"x-api-key": "sk-anything"},
            {"Authorization": "Basic x"},
        ):
            assert (await service.client.get("/health?detailed=true", headers=headers)).json()[
                "access"
            ] == "open"
            read_completion(await service.client.post(CHAT, json=asking(), headers=headers))
        read_error(
            await service.client.get("/v1/models", headers=bearer("aas_AAAAAAAAAAAA_mistyped")), 401
        )


async def test_the_first_key_ends_that(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        assert (await service.client.get("/v1/models")).status_code == 200
        headers = await service.key("first")
        assert (await service.client.get("/v1/models", headers=headers)).status_code == 200
        read_error(await service.client.get("/v1/models"), 401)
        assert (await service.client.get("/health")).json()["access"] == "keys"


@pytest.mark.parametrize(
    "host", ["attacker.example", "127.0.0.1.attacker.example", "service.attacker.example:8000", ""]
)
async def test_while_no_key_is_needed_other_names_of_the_service_are_not_answered(
    tmp_path: Path, host: str
) -> None:
    async with opened(tmp_path) as service:
        for method, path in list_routes(service.app):
            response = await ask(service.client, method, path, headers={"Host": host})
            if path in OPEN:
                assert response.status_code == 200
            else:
                assert read_error(response, 403)["code"] == "host_not_allowed", path
        headers = await service.key("first")
        assert (
            await service.client.get("/v1/models", headers={**headers, "Host": host})
        ).status_code == 200


async def test_allow_unauthenticated_lets_everybody_in_beside_the_keys(tmp_path: Path) -> None:
    async with opened(
        tmp_path, allow_unauthenticated=True, api_keys=ENVIRONMENT_KEY, allowed_hosts=()
    ) as service:
        told = {"message": "Hello", "session_id": "s"}
        for headers in ({}, bearer(ENVIRONMENT_KEY), {"Host": "agents.example"}):
            assert (
                await service.client.post("/agents/helper/chat", json=told, headers=headers)
            ).status_code == 200
        assert (await service.client.get("/health")).json()["access"] == "open"
        mine = (
            await service.client.get(
                "/agents/helper/conversations/s", headers=bearer(ENVIRONMENT_KEY)
            )
        ).json()
        assert len(mine["messages"]) == 2, "a key has conversations of its own"


async def test_while_it_is_not_known_whether_there_are_keys_nobody_is_let_in_without_one(
    tmp_path: Path,
) -> None:
    away = "postgresql://u:p@127.0.0.1:1/d"
    agents = ({**HELPER, "resources": []},)
    found = configuration(
        tmp_path, Script(says("Hi")), agents=agents, database_url=away, database_timeout=0.5
    )
    async with open_client(create_app(found)) as client:
        response = await client.post(CHAT, json=asking())
        assert read_error(response, 503)["code"] == "access_unavailable"
        assert int(response.headers["retry-after"]) >= 1
        assert (await client.get("/health")).status_code == 200
    found = configuration(
        tmp_path,
        Script(says("Hi")),
        agents=agents,
        database_url=away,
        database_timeout=0.5,
        api_keys=ENVIRONMENT_KEY,
    )
    async with open_client(create_app(found)) as client:
        read_completion(await client.post(CHAT, json=asking(), headers=bearer(ENVIRONMENT_KEY)))
        read_error(await client.post(CHAT, json=asking()), 401)


async def test_beyond_this_machine_nobody_is_let_in_without_a_key_whatever_the_database_says(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, host="0.0.0.0") as service:
        for method, path in list_routes(service.app):
            response = await ask(service.client, method, path)
            if path not in OPEN:
                assert read_error(response, 401)["code"] == "invalid_api_key", path
        assert (await service.client.get("/health")).json()["access"] == "keys"
        assert (await service.client.get("/")).json()["agents"] == []


@pytest.mark.parametrize("how", ["revoked", "expired", "unreadable"])
async def test_keys_of_which_none_works_any_more_let_nobody_in(tmp_path: Path, how: str) -> None:
    async with opened(tmp_path) as service:
        made = await service.keys.create("only")
        with (
            closing(sqlite3.connect(tmp_path / "data" / "ai-agent-service.db")) as database,
            database,
        ):
            change = {
                "revoked": "revoked_at = '2026-01-01 00:00:00.000000'",
                "expired": "expires_at = '2026-01-01 00:00:00.000000'",
                "unreadable": """rights = '{"scopes": ["chat"], "only_on": "monday"}'""",
            }
            database.execute(f"UPDATE api_keys SET {change[how]}")
    async with opened(tmp_path) as service:
        for headers in ({}, bearer(made.text)):
            read_error(await service.client.get("/v1/models", headers=headers), 401)
        [listed] = await service.keys.list()
        assert listed.state == how
        assert (await service.keys.revoke(made.stored.key.key_id)).state == "revoked"


async def test_a_key_ends_openness_where_no_agent_remembers_too(tmp_path: Path) -> None:
    app = create_app(
        configuration(tmp_path, Script(says("Hi")), agents=[{**HELPER, "resources": []}])
    )
    async with open_client(app) as client:
        assert (await client.get("/v1/models")).status_code == 200
        async with open_database(app.state.service.settings) as database:
            made = await KeyStore(database, pepper=None, cipher=Cipher(())).create("first")
        assert (await client.get("/v1/models", headers=bearer(made.text))).status_code == 200
        read_error(await client.get("/v1/models"), 401)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-Forwarded-For": "203.0.113.9"}, "host_not_allowed"),
        ({"Forwarded": "for=203.0.113.9"}, "host_not_allowed"),
        ({"Via": "1.1 proxy"}, "host_not_allowed"),
        ({"Origin": "https://evil.example"}, "cross_site_request"),
        ({"Origin": "null"}, "cross_site_request"),
    ],
)
async def test_while_no_key_is_needed_neither_proxies_nor_pages_of_others_are_answered(
    tmp_path: Path, headers: dict[str, str], code: str
) -> None:
    async with opened(tmp_path) as service:
        assert (
            read_error(await service.client.post(CHAT, json=asking(), headers=headers), 403)["code"]
            == code
        )
        assert (await service.client.get("/", headers=headers)).json()["agents"] == []
        read_completion(
            await service.client.post(CHAT, json=asking(), headers={"Origin": "http://service"})
        )
        key = await service.key("first")
        read_completion(await service.client.post(CHAT, json=asking(), headers={**headers, **key}))


# Users


def sign_token(user: str, *, role: str = "user", secret: str = SECRET) -> dict[str, str]:
    """The header by which Open WebUI tells a user."""
    now = datetime.now(UTC)
    claims = {
        "sub": user,
        "role": role,
        "iss": "open-webui",
        "iat": now,
        "exp": now + timedelta(seconds=300),
    }
    return {"X-OpenWebUI-User-Jwt": jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(secret))}


WEBUI: dict[str, Any] = {
    "identity_mode": "open_webui_jwt",
    "open_webui_jwt_secret": SECRET,
    "api_keys": ENVIRONMENT_KEY,
}


async def test_the_users_of_one_open_webui_have_conversations_of_their_own(tmp_path: Path) -> None:
    async with opened(tmp_path, **WEBUI) as service:
        chat = {"X-OpenWebUI-Chat-Id": "c1"}
        ada, bob = ({**bearer(ENVIRONMENT_KEY), **sign_token(user)} for user in ("ada", "bob"))
        read_completion(
            await service.client.post(
                CHAT, json=asking("I am Ada.", user="bob"), headers={**ada, **chat}
            )
        )
        place = "/agents/helper/conversations/c1"
        assert (await service.client.get(place, headers=ada)).status_code == 200
        assert (
            await service.client.get(place, params={"user_id": "ada"}, headers=ada)
        ).status_code == 200
        assert (
            read_error(await service.client.get(place, headers=bob), 404)["code"]
            == "conversation_not_found"
        )
        assert (
            read_error(
                await service.client.get(place, params={"user_id": "ada"}, headers=bob), 404
            )["code"]
            == "user_not_found"
        )
        asked = {"message": "Hello", "session_id": "c1", "user_id": "ada"}
        assert (
            read_error(
                await service.client.post("/agents/helper/chat", json=asked, headers=bob), 404
            )["code"]
            == "user_not_found"
        )
        assert (await service.client.delete("/memory", headers=bob)).json()["sessions"] == 0
        assert (
            read_error(
                await service.client.delete("/memory", params={"user_id": "ada"}, headers=bob), 404
            )["code"]
            == "user_not_found"
        )
        assert (await service.client.get(place, headers=ada)).status_code == 200


async def test_where_users_are_verified_what_acts_for_one_needs_one(tmp_path: Path) -> None:
    plain = {"X-OpenWebUI-User-Id": "ada", "X-OpenWebUI-User-Email": "ada@example.org"}
    async with opened(tmp_path, **WEBUI) as service:
        for method, path in list_routes(service.app):
            for user in (
                {},
                sign_token("ada", secret=SECRET[::-1]),
                plain,
                {**plain, **sign_token("ada")},
            ):
                response = await ask(
                    service.client, method, path, headers={**bearer(ENVIRONMENT_KEY), **user}
                )
                if (
                    (method == "GET" or path == "/admin/reload")
                    and "conversations" not in path
                    and path != "/memory"
                ):
                    assert response.status_code == 200, path
                else:
                    assert read_error(response, 401)["code"] == "invalid_token", path
            if path not in OPEN:
                assert (
                    read_error(
                        await ask(service.client, method, path, headers=sign_token("ada")), 401
                    )["code"]
                    == "invalid_api_key"
                )


async def test_the_headers_of_a_user_are_passed_over_where_nobody_vouches_for_them(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as service:
        spoofed = {"X-OpenWebUI-User-Id": "ada", "X-Forwarded-User": "ada", **sign_token("ada")}
        told = {"message": "Hello", "session_id": "s"}
        assert (
            await service.client.post("/agents/helper/chat", json=told, headers=spoofed)
        ).json()["user_id"] == "anonymous"


async def test_an_agent_is_for_the_groups_and_roles_that_it_names(tmp_path: Path) -> None:
    agents = (HELPER, {**HELPER, "agent_id": "other", "access": {"roles": ["admin", "editor"]}})
    async with opened(tmp_path, agents=agents, **WEBUI) as service:
        for role, allowed in (("admin", True), ("editor", True), ("user", False), ("ADMIN", False)):
            headers = {**bearer(ENVIRONMENT_KEY), **sign_token("ada", role=role)}
            found = await service.client.post(
                CHAT, json={**asking(), "model": "other"}, headers=headers
            )
            if allowed:
                read_completion(found)
                continue
            absent = await service.client.post(
                CHAT, json={**asking(), "model": "absent"}, headers=headers
            )
            assert read_error(found, 404)["code"] == "model_not_found"
            assert found.text == absent.text
            read_error(
                await service.client.get("/agents/other/conversations", headers=headers), 404
            )


async def test_an_agent_for_groups_is_for_nobody_where_users_are_not_verified(
    tmp_path: Path,
) -> None:
    agents = ({**HELPER, "access": {"groups": ["hr"]}},)
    found = configuration(tmp_path, agents=agents)
    assert any("access" in warning and "IDENTITY_MODE" in warning for warning in found.warnings)
    async with open_client(create_app(found)) as client:
        read_error(await client.post(CHAT, json=asking()), 404)


# Limits


async def test_what_a_key_may_ask_a_minute_is_counted_and_told(tmp_path: Path) -> None:
    script = Script(says("Hi", usage=Usage(30, 10)))
    async with opened(tmp_path, script) as service:
        headers = await service.key("limited", limits=Limits(requests=2, tokens=10_000))
        for left in (1, 0):
            response = await service.client.post(CHAT, json=asking(), headers=headers)
            read_completion(response)
            assert response.headers["x-ratelimit-limit-requests"] == "2"
            assert response.headers["x-ratelimit-remaining-requests"] == str(left)
            assert response.headers["x-ratelimit-limit-tokens"] == "10000"
        response = await service.client.post(CHAT, json=asking(stream=True), headers=headers)
        error = read_error(response, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert 1 <= int(response.headers["retry-after"]) <= 31
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(script.requests) == 2
        assert (await service.client.get("/v1/models", headers=headers)).status_code == 200


async def test_tokens_are_settled_by_what_was_used(tmp_path: Path) -> None:
    async with opened(
        tmp_path, Script(says("Hi", usage=Usage(900, 50)), says("Hi", usage=Usage(5, 5)))
    ) as service:
        headers = await service.key("limited", limits=Limits(tokens=1000))
        asked = asking(max_tokens=10)
        read_completion(await service.client.post(CHAT, json=asked, headers=headers))
        response = await service.client.post(
            CHAT, json={**asked, "max_tokens": 500}, headers=headers
        )
        read_error(response, 429)
        assert int(response.headers["x-ratelimit-remaining-tokens"]) in range(40, 70)
        read_completion(await service.client.post(CHAT, json=asked, headers=headers))


@pytest.mark.parametrize("usage", [None, Usage(1, 1)])
async def test_what_broke_off_counts_by_what_was_said(tmp_path: Path, usage: Usage | None) -> None:
    """Whoever leaves before the end, or whose answer breaks off, has not had it for nothing."""
    script = Script(
        [TextDelta("many words " * 2000), ProviderUnavailableError("It is down.")],
        says("Hi", usage=usage),
    )
    async with opened(tmp_path, script) as service:
        headers = await service.key("limited", limits=Limits(tokens=3000))
        read_stream(
            await service.client.post(CHAT, json=asking(stream=True, max_tokens=1), headers=headers)
        )
        response = await service.client.post(CHAT, json=asking(max_tokens=1), headers=headers)
        read_error(response, 429)
        assert response.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_the_largest_of_the_bounds_of_an_answer_is_reserved(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        headers = await service.key("limited", limits=Limits(tokens=1000))
        read_completion(await service.client.post(CHAT, json=asking(max_tokens=1), headers=headers))
        read_error(
            await service.client.post(
                CHAT, json=asking(max_completion_tokens=1, max_tokens=5000), headers=headers
            ),
            429,
        )


async def test_each_user_behind_a_key_has_their_own_share(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        headers = await service.key("shared", user_limits=Limits(requests=1))
        for user in ("ada", "bob"):
            read_completion(
                await service.client.post(CHAT, json=asking(user=user), headers=headers)
            )
            read_error(
                await service.client.post(CHAT, json=asking(user=user), headers=headers), 429
            )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_run_that_fails_gives_its_place_back(tmp_path: Path, stream: bool) -> None:
    script = Script([TextDelta("It"), ProviderUnavailableError("It is down.")], says("Hi"))
    async with opened(tmp_path, script) as service:
        headers = await service.key("one at a time", limits=Limits(parallel=1))
        broken = await service.client.post(CHAT, json=asking(stream=stream), headers=headers)
        if stream:
            assert read_stream(broken)[1] is not None
        else:
            read_error(broken, 502)
        read_completion(await service.client.post(CHAT, json=asking(), headers=headers))


# Audit


async def test_calls_and_refused_tools_stand_in_the_audit_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "audit")
    script = Script(calls(("delete_everything", {})), says("Hi"))
    async with opened(tmp_path, script) as service:
        created = await service.keys.create("ada's")
        read_completion(
            await service.client.post(CHAT, json=asking(user="ada"), headers=bearer(created.text))
        )
        read_error(
            await service.client.post(CHAT, json=asking(n=2), headers=bearer(created.text)), 400
        )
    lines = [vars(record) for record in caplog.records if record.name == "audit"]
    key_id = created.stored.key.key_id
    assert [line["message"] for line in lines] == ["key.created", "tool.refused", "agent.called"]
    assert lines[1]["tool"] == "delete_everything"
    for line in lines[1:]:
        assert (line["agent_id"], line["key_id"], line["user"], line["tenant"]) == (
            "helper",
            key_id,
            "ada",
            key_id,
        )
    assert lines[2]["outcome"] == "answered"
    assert created.text not in caplog.text


async def test_what_is_done_to_conversations_and_refused_by_limits_stands_in_the_audit_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as service:
        headers = await service.key("ada's", limits=Limits(requests=1))
        asked = {"message": "Hello", "session_id": "s", "user_id": "ada"}
        assert (
            await service.client.post("/agents/helper/chat", json=asked, headers=headers)
        ).status_code == 200
        caplog.set_level(logging.INFO, "audit")
        read_error(
            await service.client.post("/agents/helper/chat", json=asked, headers=headers), 429
        )
        mine = {"user_id": "ada"}
        assert (
            await service.client.get("/memory", params=mine, headers=headers)
        ).status_code == 200
        assert (
            await service.client.delete(
                "/agents/helper/conversations/s", params=mine, headers=headers
            )
        ).status_code == 200
        assert (
            await service.client.delete("/memory", params=mine, headers=headers)
        ).status_code == 200
    lines = [vars(record) for record in caplog.records if record.name == "audit"]
    assert [line["message"] for line in lines] == [
        "agent.refused",
        "memory.exported",
        "conversation.deleted",
        "memory.erased",
    ]
    assert {line["user"] for line in lines} == {"ada"}
    assert lines[0]["outcome"] == "rate_limit_exceeded"
    assert (lines[2]["agent_id"], lines[2]["session"]) == ("helper", "s")
