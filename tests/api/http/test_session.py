"""Which session a request belongs to, and what a client says of turns that it asks again."""

from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from ai_agent_service.api.http.session import drop_session, read_session
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.core.turn import Turn
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, asking, read_completion, read_error
from tests.support.fake_provider import Script, says
from tests.support.service import AGENT, configuration, open_client

AGENTS = [{**AGENT, "resources": ["memory"]}, {**AGENT, "agent_id": "forgetful"}]
ASK = "/agents/helper/chat"


def request_with(headers: dict[str, str]) -> Request:
    """A request of which only the headers matter."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


def found(
    headers: dict[str, str], metadata: dict[str, Any] | None = None, session_id: str | None = None
) -> Turn:
    return read_session(Turn(messages=()), request_with(headers), metadata, session_id)


ALL = {"X-OpenWebUI-Chat-Id": "chat", "X-Session-Id": "header"}


@pytest.mark.parametrize(
    ("headers", "session_id", "metadata", "session"),
    [
        (ALL, "body", {"session_id": "metadata"}, "chat"),
        ({**ALL, "X-OpenWebUI-Chat-Id": ""}, "body", {"session_id": "metadata"}, "header"),
        ({}, "body", {"session_id": "metadata"}, "body"),
        ({}, None, {"session_id": "metadata"}, "metadata"),
        ({}, "", {"session_id": ""}, None),
        ({}, None, {"session_id": None}, None),
        ({}, None, None, None),
    ],
)
def test_the_first_place_that_names_a_session_counts(
    headers: dict[str, str],
    session_id: str | None,
    metadata: dict[str, Any] | None,
    session: str | None,
) -> None:
    assert found(headers, metadata, session_id).session == session


@pytest.mark.parametrize("session", ["temporary:1234", "local:1234", "temporary:", "local:"])
def test_chats_that_are_not_to_be_kept_have_no_session(session: str) -> None:
    assert found({"X-OpenWebUI-Chat-Id": session}).session is None
    assert found({}, {"session_id": session}).session is None
    assert found({}, session_id=session).session is None


def test_a_chat_that_is_not_to_be_kept_is_not_kept_under_another_name() -> None:
    assert (
        found(
            {"X-OpenWebUI-Chat-Id": "temporary:1", "X-Session-Id": "s"}, {"session_id": "s"}
        ).session
        is None
    )


def test_only_the_beginning_tells_that_a_chat_is_not_to_be_kept() -> None:
    assert found({"X-Session-Id": "my local: chat"}).session == "my local: chat"


def test_a_task_beside_the_chat_has_no_session() -> None:
    assert found({**ALL, "X-AAS-Task": "title_generation"}).session is None
    assert found({**ALL, "X-AAS-Task": ""}).session == "chat"


@pytest.mark.parametrize(
    ("headers", "is_retry"),
    [
        ({}, False),
        ({"x-stainless-retry-count": "0"}, False),
        ({"x-stainless-retry-count": ""}, False),
        ({"X-Stainless-Retry-Count": "2"}, True),
    ],
)
def test_a_client_library_says_that_it_asks_again(headers: dict[str, str], is_retry: bool) -> None:
    assert found(headers).is_retry is is_retry


def test_a_turn_may_have_an_id_of_the_clients() -> None:
    assert found({"X-AAS-Message": "m1"}).message_id == "m1"
    assert found({"X-AAS-Message": ""}).message_id is None
    assert found({"X-AAS-Message": "m" * 1000}).message_id == "m" * 255


@pytest.mark.parametrize(
    ("headers", "metadata", "history"),
    [
        ({}, None, None),
        ({"X-Session-History": "server"}, None, "server"),
        ({"X-Session-History": "client"}, {"session_history": "server"}, "client"),
        ({"X-Session-History": ""}, {"session_history": "server"}, "server"),
        ({}, {"session_history": "client"}, "client"),
    ],
)
def test_a_request_says_whose_history_counts(
    headers: dict[str, str], metadata: dict[str, Any] | None, history: str | None
) -> None:
    assert found({"X-Session-Id": "s", **headers}, metadata).history == history


@pytest.mark.parametrize("session", ["a\x00b", "a\nb", "a\x7fb", "a" * 256, "\t"], ids=ascii)
def test_a_session_id_of_another_form_is_refused(session: str) -> None:
    asked: tuple[tuple[str, dict[str, str], dict[str, str], str | None], ...] = (
        ("X-OpenWebUI-Chat-Id", {"X-OpenWebUI-Chat-Id": session}, {}, None),
        ("X-Session-Id", {"X-Session-Id": session}, {}, None),
        ("session_id", {}, {}, session),
        ("metadata.session_id", {}, {"session_id": session}, None),
    )
    for place, headers, metadata, session_id in asked:
        with pytest.raises(InvalidRequestError) as raised:
            found(headers, metadata, session_id)
        assert raised.value.param == place
        assert session not in raised.value.message


# Through the API


@pytest.mark.parametrize(
    ("headers", "metadata", "param"),
    [
        ({"X-Session-Id": "a" * 256}, {}, "X-Session-Id"),
        ({}, {"session_id": "a\x01b"}, "metadata.session_id"),
        ({}, {"session_id": 5}, "metadata.session_id"),
        ({}, {"session_id": ["s"]}, "metadata.session_id"),
        ({"X-Session-Id": "s", "X-Session-History": "both"}, {}, "X-Session-History"),
        ({"X-Session-Id": "s"}, {"session_history": 1}, "metadata.session_history"),
        ({"X-Session-Id": "s"}, {"session_history": {}}, "metadata.session_history"),
        ({"X-Session-History": "server"}, {}, "metadata.session_id"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_named(
    tmp_path: Path, headers: dict[str, str], metadata: dict[str, Any], param: str
) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script, agents=AGENTS))) as client:
        error = read_error(
            await client.post(CHAT, json=asking(metadata=metadata), headers=headers), 400
        )
    assert error["param"] == param
    assert script.requests == []


async def test_the_servers_history_is_refused_by_an_agent_that_has_none(tmp_path: Path) -> None:
    headers = {"X-Session-Id": "s", "X-Session-History": "server"}
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Hi")), agents=AGENTS))
    ) as client:
        error = read_error(
            await client.post(CHAT, json=asking() | {"model": "forgetful"}, headers=headers), 400
        )
        read_completion(
            await client.post(
                CHAT, json=asking() | {"model": "forgetful"}, headers={"X-Session-Id": "s"}
            )
        )
    assert error["param"] == "metadata.session_history"


async def test_a_session_id_of_the_chat_is_checked(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Hi")), agents=AGENTS))
    ) as client:
        for body, param in (
            ({"session_id": "a" * 256}, "session_id"),
            ({"session_id": 5}, "session_id"),
        ):
            assert (
                read_error(await client.post(ASK, json={"message": "Hello", **body}), 400)["param"]
                == param
            )
        refused = await client.post(
            ASK, json={"message": "Hello"}, headers={"X-Session-History": "server"}
        )
        assert read_error(refused, 400)["param"] == "metadata.session_id"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"X-OpenWebUI-Chat-Id": "temporary:1"}, {}),
        ({"X-OpenWebUI-Chat-Id": "local:1"}, {}),
        ({"X-OpenWebUI-Chat-Id": "c", "X-AAS-Task": "title_generation"}, {}),
        (
            {"X-OpenWebUI-Chat-Id": "c"},
            {
                "messages": [
                    {"role": "user", "content": '### Task:\nFind a title. JSON: {"title": "..."}'}
                ]
            },
        ),
        ({}, {}),
    ],
    ids=["temporary", "local", "task", "task by its words", "no session"],
)
async def test_these_are_answered_and_not_stored(
    tmp_path: Path, headers: dict[str, str], body: dict[str, Any]
) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Hi")), agents=AGENTS))
    ) as client:
        read_completion(await client.post(CHAT, json=asking() | body, headers=headers))
        assert (await client.get("/agents/helper/conversations")).json()["data"] == []


async def test_the_chat_takes_messages_as_the_clients_history(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    messages = [{"role": "user", "content": "a"}]
    async with open_client(create_app(configuration(tmp_path, script, agents=AGENTS))) as client:
        for _ in range(2):
            assert (
                await client.post(ASK, json={"messages": messages, "session_id": "s"})
            ).status_code == 200
        assert len(script.requests[1].messages) == 2
        assert (await client.post(ASK, json={"message": "b", "session_id": "s"})).status_code == 200
        assert [message.text for message in script.requests[2].messages[1:]] == ["a", "Hi", "b"]
        headers = {"X-Session-History": "client"}
        assert (
            await client.post(ASK, json={"message": "c", "session_id": "s"}, headers=headers)
        ).status_code == 200
        assert [message.text for message in script.requests[3].messages[1:]] == ["c"]


async def test_the_chat_tells_the_session_it_is_in(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Hi")), agents=AGENTS))
    ) as client:
        answers = [
            (
                await client.post(ASK, json={"message": "a", "session_id": "s"}, headers=headers)
            ).json()["session_id"]
            for headers in ({}, {"X-Session-Id": "t"})
        ]
    assert answers == ["s", "t"]


async def test_an_agents_api_request_with_two_faults_names_the_session_first(
    tmp_path: Path,
) -> None:
    body = {"message": "x", "messages": [{"role": "user", "content": "x"}], "session_id": "a\nb"}
    async with open_client(create_app(configuration(tmp_path, Script([])))) as client:
        assert read_error(await client.post(ASK, json=body), 400)["param"] == "session_id"


def test_a_turn_that_is_not_remembered_brings_its_whole_history() -> None:
    turn = found({"X-Session-Id": "s", "Idempotency-Key": "k"})
    dropped = drop_session(turn)
    assert (dropped.session, dropped.history, dropped.message_id) == (None, "client", None)
    assert dropped.idempotency_key == "k"
