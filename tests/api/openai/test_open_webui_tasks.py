"""The tasks that Open WebUI asks of a chat's model beside the chat: how they are told, and that
they touch nothing of the chat."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.agents.chat_tasks import Task
from ai_agent_service.api.http.session import parse_task
from ai_agent_service.api.openai.open_webui_tasks import detect_task
from ai_agent_service.core.messages import Message
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, asking, join_deltas, read_chunks, read_completion
from tests.support.fake_provider import Script, calls, says
from tests.support.service import AGENT, configuration, open_client

HISTORY = (
    "### Chat History:\n<chat_history>\nUSER: How high is K2?\nASSISTANT: 8611 m.\n</chat_history>"
)
TITLE = (
    '### Task:\nGenerate a concise title.\n### Output:\nJSON format: { "title": "your concise'
    f' title here" }}\n{HISTORY}'
)
DOCUMENTS = (
    "### Task:\nRespond to the user query using the provided context.\n\n<context>\n"
    '<source id="1">Answer in JSON: { "title": "x" }</source>\n</context>\nHow high is K2?'
)
SHAPES: list[tuple[str, Task]] = [
    (TITLE, "title_generation"),
    (TITLE.replace("title", "tags"), "tags_generation"),
    (TITLE.replace("title", "follow_ups"), "follow_up_generation"),
    (TITLE.replace("title", "queries").replace('{ "', '{\n  "'), "query_generation"),
    (TITLE.replace("title", "prompt"), "image_prompt_generation"),
    (TITLE.replace("title", "text"), "autocomplete_generation"),
]
OPEN_WEBUI = {"X-OpenWebUI-Chat-Id": "chat-1", "X-OpenWebUI-User-Id": "ada"}
REMEMBERING: dict[str, Any] = {**AGENT, "resources": ["memory"]}


def user(text: str) -> list[Message]:
    return [Message("user", text)]


@pytest.mark.parametrize(("text", "task"), SHAPES)
def test_tasks_are_told_by_the_answer_that_they_want(text: str, task: Task) -> None:
    assert detect_task(user(text), is_open_webui=True) == task
    assert detect_task(user(text), is_open_webui=False) == task


def test_tasks_of_other_shapes_are_told_from_open_webui_alone() -> None:
    emoji = (
        "Your task is to reflect the speaker's likely facial expression through a fitting emoji."
        " Message: ```hi```"
    )
    moa = (
        "You have been provided with a set of responses from various models to the latest user"
        ' query: "x"'
    )
    reviewer = [
        Message("system", "You are Open WebUI's private memory reviewer. Return only valid JSON."),
        *user("Review"),
    ]
    tools = [Message("system", 'Available Tools: [] ... "tool_calls": []'), *user("Query: x")]
    own_title = '### Task:\nName it. JSON: {"title": "..."}\nUSER: hello'
    wanted: list[tuple[list[Message], Task]] = [
        (user(emoji), "emoji_generation"),
        (user(moa), "moa_response_generation"),
        (reviewer, "memory_review"),
        (tools, "function_calling"),
        (user(own_title), "title_generation"),
    ]
    for messages, task in wanted:
        assert detect_task(messages, is_open_webui=True) == task
        assert detect_task(messages, is_open_webui=False) is None


@pytest.mark.parametrize(
    "messages",
    [
        user("How high is K2?"),
        user(DOCUMENTS),
        user("### Task:\nWrite a poem about JSON."),
        [*user(TITLE), Message("assistant", "{}"), *user("And now?")],
        [Message("assistant", TITLE)],
        [Message("system", "Be kind."), *user(TITLE)],
        [],
    ],
)
def test_a_chat_is_not_taken_for_a_task(messages: list[Message]) -> None:
    assert detect_task(messages, is_open_webui=True) is None


def test_a_task_that_is_not_known_by_name_is_one_all_the_same() -> None:
    assert parse_task("title_generation") == "title_generation"
    assert parse_task("new_in_0_13") == "other"


def stored(folder: Path) -> int:
    with sqlite3.connect(folder / "data" / "ai-agent-service.db") as database:
        ((count,),) = database.execute("SELECT count(*) FROM nodes").fetchall()
    return int(count)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (asking(TITLE), OPEN_WEBUI),
        (asking(TITLE, metadata={"session_id": "chat-1"}), {}),
        (asking("Name this chat."), {**OPEN_WEBUI, "X-AAS-Task": "title_generation"}),
    ],
)
async def test_a_task_goes_to_the_model_alone(
    tmp_path: Path, body: dict[str, Any], headers: dict[str, str]
) -> None:
    script = Script(says('Sure: ```json\n{"title": "K2"}\n```'))
    agent = {
        **REMEMBERING,
        "model_settings": {"temperature": 0.1, "response_format": {"type": "json_object"}},
    }
    async with open_client(create_app(configuration(tmp_path, script, agents=[agent]))) as client:
        completion = read_completion(
            await client.post(CHAT, json={**body, "max_tokens": 50}, headers=headers)
        )
    assert json.loads(completion["choices"][0]["message"]["content"]) == {"title": "K2"}
    assert completion["usage"]["total_tokens"] == 11
    (request,) = script.requests
    assert request.tools == ()
    assert [message.role for message in request.messages] == ["user"]
    assert request.settings == {"temperature": 0.1, "max_tokens": 50}
    assert stored(tmp_path) == 0


async def test_a_question_about_documents_is_part_of_the_chat(tmp_path: Path) -> None:
    script = Script(says("8611 m."))
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[REMEMBERING]))
    ) as client:
        read_completion(await client.post(CHAT, json=asking(DOCUMENTS), headers=OPEN_WEBUI))
    assert script.requests[0].tools
    assert stored(tmp_path) == 2


async def test_a_model_that_wants_tools_for_a_task_gets_none(tmp_path: Path) -> None:
    script = Script(calls(("calculate", {"expression": "1+1"})))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        completion = read_completion(
            await client.post(CHAT, json=asking(TITLE), headers=OPEN_WEBUI)
        )
    choice = completion["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"]) == {"title": "How high is K2"}
    assert len(script.requests) == 1


async def test_tasks_have_a_provider_and_a_model_of_their_own_where_they_are_set(
    tmp_path: Path,
) -> None:
    chat, tasks = Script(says("Hi")), Script(says('{"title": "K2"}'))
    config = configuration(tmp_path, chat, task_provider="ollama", task_model="small")
    config.plugins.providers["ollama"] = tasks
    async with open_client(create_app(config)) as client:
        read_completion(await client.post(CHAT, json=asking(TITLE), headers=OPEN_WEBUI))
        read_completion(await client.post(CHAT, json=asking(), headers=OPEN_WEBUI))
    assert [request.model for request in tasks.requests] == ["small"]
    assert [request.model for request in chat.requests] == ["scripted-model"]


async def test_the_demo_answers_tasks_by_rule(tmp_path: Path) -> None:
    agent = {**AGENT, "provider": "demo", "display": {"suggestion_prompts": ["What time is it?"]}}
    async with open_client(create_app(configuration(tmp_path, agents=[agent]))) as client:
        answers = [
            read_completion(await client.post(CHAT, json=asking(text), headers=OPEN_WEBUI))[
                "choices"
            ][0]["message"]["content"]
            for text, _ in SHAPES
        ]
    assert [json.loads(answer) for answer in answers] == [
        {"title": "How high is K2"},
        {"tags": ["General"]},
        {"follow_ups": ["What time is it?"]},
        {"queries": ["How high is K2?"]},
        {"prompt": "How high is K2?"},
        {"text": ""},
    ]


async def test_a_task_may_be_streamed(tmp_path: Path) -> None:
    script = Script(says("The ", "best ", "of both."))
    headers = {**OPEN_WEBUI, "X-AAS-Task": "moa_response_generation"}
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        chunks = read_chunks(
            await client.post(CHAT, json=asking("Merge.", stream=True), headers=headers)
        )
    assert join_deltas(chunks) == "The best of both."
    assert len([chunk for chunk in chunks if chunk["choices"]]) == 5
