"""Drives Open WebUI in a browser, as its users do, and looks at the page, at its database and at
ours."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
from joserfc import jwt
from joserfc.jwk import OctKey
from playwright.sync_api import expect

from e2e import model as asked_for
from e2e.conftest import SCREENSHOTS, User, World, rows
from e2e.model import Asked
from e2e.pages import Card, Chat
from e2e.processes import API_KEY, JWT_SECRET, SQUARE

STOP_SECONDS = 2.0
"""Within which a model is left once the stop button was pressed."""

DEADLINE = 10.0
"""Seconds in which what was seen on the page is in a database."""


def until(probe: Callable[[], bool], what: str) -> None:
    """Asks a database of another process until `probe()` is true."""
    deadline = time.monotonic() + DEADLINE
    while not probe():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def nodes_of(world: World, chat_id: str, agent: str = "research_agent") -> list[dict[str, Any]]:
    """What our database has of a chat's session, in the order it came, once no run of it is under
    way."""
    session = "SELECT key FROM sessions WHERE session_id = ? AND agent_id = ?"
    running = f"SELECT run_id FROM runs WHERE status = 'running' AND session_key IN ({session})"
    until(lambda: not rows(world.service_database, running, chat_id, agent), "the end of the runs")
    found = rows(
        world.service_database,
        f"SELECT * FROM nodes WHERE session_key IN ({session}) ORDER BY created_at, depth",
        chat_id,
        agent,
    )
    return [
        {
            **node,
            "body": json.loads(node["body"]),
            "steps": json.loads(node["steps"]) if node["steps"] else None,
        }
        for node in found
    ]


def runs_of(world: World, chat_id: str) -> list[str]:
    """The statuses of the runs of a chat's sessions, in order."""
    statement = (
        "SELECT status FROM runs WHERE session_key IN (SELECT key FROM sessions WHERE session_id ="
        " ?) ORDER BY started_at"
    )
    return [row["status"] for row in rows(world.service_database, statement, chat_id)]


def names_called(node: dict[str, Any]) -> list[list[str]]:
    """The names of the tools that an answer in our database called, step by step; each call has its
    result."""
    steps = (node["steps"] or {"steps": []})["steps"]
    for step in steps:
        assert [call["id"] for call in step["calls"]] == [
            result["call_id"] for result in step["results"]
        ]
    return [[call["name"] for call in step["calls"]] for step in steps]


def items_of(world: World, chat_id: str) -> list[list[dict[str, Any]]]:
    """The items of each answer of a chat in Open WebUI's database, in the order they came, once all
    are done."""
    open_answers = (
        "SELECT id FROM chat_message WHERE chat_id = ? AND role = 'assistant' AND done IS NOT 1"
    )
    until(
        lambda: not rows(world.webui_database, open_answers, chat_id),
        "the answers in Open WebUI's database",
    )
    statement = (
        "SELECT output FROM chat_message WHERE chat_id = ? AND role = 'assistant' ORDER BY"
        " created_at"
    )
    return [
        json.loads(row["output"] or "[]") for row in rows(world.webui_database, statement, chat_id)
    ]


def calls_in(items: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The ids of the calls among items, and of the results."""
    return tuple(
        [item["call_id"] for item in items if item["type"] == kind]
        for kind in ("function_call", "function_call_output")
    )  # type: ignore[return-value]


def answered(asked: Asked) -> list[str]:
    """The results that a model was sent, by the ids of their calls."""
    return [message["tool_call_id"] for message in asked.messages if message["role"] == "tool"]


def assert_two_cards(cards: list[Card]) -> None:
    """That both calls of ONE_STEP are shown, with arguments and results."""
    assert [card.name for card in cards] == ["calculate", "get_current_datetime"]
    assert "1840 * 12.5 / 100" in cards[0].input
    assert cards[0].output == "230"
    assert "Europe/Paris" in cards[1].input
    assert "weekday" in cards[1].output
    assert not any(card.failed for card in cards)


def test_an_answer_streams_in_with_its_tool_cards_which_are_there_after_a_reload(
    world: World, chat: Chat
) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.screenshot("chosen")
    with world.model.held():
        chat.send(asked_for.ONE_STEP)
        expect(chat.text).to_contain_text("12.5% of 1840 is 230")
        expect(chat.text).not_to_contain_text("not from memory")
        chat.screenshot("streaming")
    expect(chat.text).to_contain_text("not from memory")
    chat.finished()
    chat.screenshot("answered")
    assert_two_cards(chat.cards())
    chat.screenshot("cards")

    chat.reload()
    assert_two_cards(chat.cards())
    expect(chat.text).to_have_count(1)
    chat.screenshot("reloaded")

    [items] = items_of(world, chat.id)
    calls, results = calls_in(items)
    assert len(calls) == len(set(calls)) == 2
    assert results == calls
    question, answer = nodes_of(world, chat.id)
    assert (question["role"], question["body"]) == ("user", asked_for.ONE_STEP)
    assert (answer["role"], answer["origin"], answer["status"]) == ("assistant", "ours", "complete")
    assert answer["body"] == "".join(asked_for.ONE_STEP_ANSWER)
    assert names_called(answer) == [["calculate", "get_current_datetime"]]


def test_a_picture_for_the_documentation(chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.ask(asked_for.ONE_STEP)
    assert_two_cards(chat.cards())
    expect(chat.page.get_by_text("Follow up", exact=True)).to_be_visible()
    chat.page.set_viewport_size({"width": 1280, "height": 1040})
    chat.page.mouse.move(1279, 500)
    chat.page.screenshot(path=SCREENSHOTS / "open-webui.png", animations="disabled")


def test_calls_of_two_steps_are_shown_in_order(world: World, chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.ask(asked_for.TWO_STEPS)
    cards = chat.cards()
    assert [card.name for card in cards] == ["get_current_datetime", "calculate"]
    assert cards[1].output == "2557"
    chat.screenshot("cards")
    calls, results = calls_in(items_of(world, chat.id)[0])
    assert len(set(calls)) == 2
    assert results == calls
    assert names_called(nodes_of(world, chat.id)[1]) == [["get_current_datetime"], ["calculate"]]


def test_calls_that_open_webui_sends_again_are_neither_run_nor_stored_again(
    world: World, chat: Chat
) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.ask(asked_for.ONE_STEP)
    chat.reload()
    before = len(world.model.requests)
    chat.ask("And what was the first number?")
    chat.screenshot("second-answer")

    chats = [asked for asked in world.model.requests[before:] if not asked.is_task]
    assert [asked.question for asked in chats] == ["And what was the first number?"]
    ids = [call_id for call_id, _ in chats[0].calls]
    assert [name for _, name in chats[0].calls] == ["calculate", "get_current_datetime"]
    assert answered(chats[0]) == ids
    assert (
        sum(
            "".join(asked_for.ONE_STEP_ANSWER)[:30] in str(message["content"])
            for message in chats[0].messages
        )
        == 1
    )
    first, second = items_of(world, chat.id)
    assert len(calls_in(first)[0]) == 2
    assert calls_in(second) == ([], [])
    nodes = nodes_of(world, chat.id)
    assert [(node["role"], node["depth"]) for node in nodes] == [
        ("user", 1),
        ("assistant", 2),
        ("user", 3),
        ("assistant", 4),
    ]
    assert [node["origin"] for node in nodes if node["role"] == "assistant"] == ["ours", "ours"]
    assert [names_called(node) for node in nodes[1::2]] == [
        [["calculate", "get_current_datetime"]],
        [],
    ]


def test_a_regenerated_answer_stands_beside_the_first(world: World, chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.ask("Say something of regenerating.")
    first = chat.text.inner_text()
    chat.regenerate()
    expect(chat.answers.last).to_contain_text("2/2")
    chat.finished()
    expect(chat.text).to_contain_text("You said: Say something of regenerating.")
    second = chat.text.inner_text()
    assert second != first
    chat.screenshot("regenerated")

    chat.earlier()
    expect(chat.answers.last).to_contain_text("1/2")
    expect(chat.text).to_contain_text(first)
    chat.ask("And now?")
    [asked] = world.model.for_question("And now?")
    assert [
        message["content"].strip() for message in asked.messages if message["role"] == "assistant"
    ] == [first]
    chat.screenshot("went-on-from-the-first")

    nodes = nodes_of(world, chat.id)
    assert [(node["role"], node["depth"]) for node in nodes] == [
        ("user", 1),
        ("assistant", 2),
        ("assistant", 2),
        ("user", 3),
        ("assistant", 4),
    ]
    assert [node["body"].strip() for node in nodes[1:3]] == [first, second]
    assert nodes[3]["parent"] == nodes[1]["path"]
    assert runs_of(world, chat.id) == ["done", "done", "done"]


def test_an_edited_question_begins_a_branch_of_which_alone_the_model_is_told(
    world: World, chat: Chat
) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.ask("I like red.")
    chat.ask("What do I like?")
    chat.edit(0, "I like blue.")
    expect(chat.text).to_contain_text("You said: I like blue.")
    chat.finished()
    chat.screenshot("edited")
    chat.ask("What do I like now?")
    chat.screenshot("went-on")

    assert world.model.for_question("I like blue.")[-1].said == ["I like blue."]
    assert world.model.for_question("What do I like now?")[-1].said == [
        "I like blue.",
        "What do I like now?",
    ]
    nodes = nodes_of(world, chat.id)
    assert [node["depth"] for node in nodes if node["role"] == "user"] == [1, 3, 1, 3]
    by_path = {node["path"]: node for node in nodes}
    assert by_path[by_path[nodes[-2]["parent"]]["parent"]]["body"] == "I like blue."


def test_the_stop_button_ends_the_run_and_keeps_what_was_said(world: World, chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.send(asked_for.SLOW)
    expect(chat.text).to_contain_text("Line 3.")
    chat.screenshot("streaming")
    pressed = time.monotonic()
    chat.stop()
    asked = world.model.for_question(asked_for.SLOW)[-1]
    world.model.until(lambda: asked.ended, "the end of the run")
    assert asked.left
    assert asked.ended is not None
    assert asked.ended - pressed < STOP_SECONDS
    chat.finished()
    chat.screenshot("stopped")
    chat.reload()
    expect(chat.text).to_contain_text("Line 1. Line 2. Line 3.")
    question, answer = nodes_of(world, chat.id)
    assert (question["status"], answer["status"]) == ("complete", "incomplete")
    assert answer["body"].startswith("Line 1. Line 2. Line 3.")
    assert runs_of(world, chat.id) == ["incomplete"]

    chat.ask("Go on with something else.")
    expect(chat.text.last).to_contain_text("You said: Go on with something else.")
    chat.screenshot("went-on")
    [again] = world.model.for_question("Go on with something else.")
    assert again.said == [asked_for.SLOW, "Go on with something else."]
    [partial] = [message["content"] for message in again.messages if message["role"] == "assistant"]
    assert partial.startswith("Line 1. Line 2. Line 3.")
    assert runs_of(world, chat.id) == ["incomplete", "done"]


def test_the_stop_button_ends_a_tool_and_the_chat_goes_on(world: World, chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.send(asked_for.WAITING_TOOL)
    expect(chat.answers.last).to_contain_text("take_a_minute")
    chat.screenshot("running")
    pressed = time.monotonic()
    chat.stop()
    until(lambda: runs_of(world, chat.id) == ["incomplete"], "the end of the run")
    assert time.monotonic() - pressed < STOP_SECONDS
    chat.finished()
    chat.screenshot("stopped")
    assert len(world.model.for_question(asked_for.WAITING_TOOL)) == 1

    chat.ask("What came of it?")
    expect(chat.text.last).to_contain_text("You said: What came of it?")
    chat.screenshot("went-on")
    [asked] = world.model.for_question("What came of it?")
    assert answered(asked) == [call_id for call_id, _ in asked.calls]
    assert len(asked.calls) <= 1
    assert runs_of(world, chat.id) == ["incomplete", "done"]


def test_an_error_after_a_tool_leaves_its_card_and_the_chat_goes_on(
    world: World, chat: Chat
) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.send(asked_for.BROKEN_LATER)
    expect(chat.answers.last).to_contain_text("out of order (500)")
    chat.finished()
    assert [(card.name, card.output) for card in chat.cards()] == [("calculate", "42")]
    chat.screenshot("error-after-card")
    assert len(world.model.for_question(asked_for.BROKEN_LATER)) == 2
    chat.ask("Does it work again?")
    expect(chat.text.last).to_contain_text("You said: Does it work again?")
    asked = world.model.for_question("Does it work again?")[-1]
    assert [name for _, name in asked.calls] == ["calculate"]
    assert answered(asked) == [call_id for call_id, _ in asked.calls]
    assert runs_of(world, chat.id) == ["incomplete", "done"]


def test_of_a_temporary_chat_nothing_is_stored(world: World, chat: Chat) -> None:
    chat.open(temporary=True)
    chat.choose("research_agent")
    chat.ask("This is a secret.")
    expect(chat.text).to_contain_text("You said: This is a secret.")
    chat.ask("What did I say?")
    chat.screenshot("temporary")
    assert world.model.for_question("What did I say?")[-1].said == [
        "This is a secret.",
        "What did I say?",
    ]
    assert not rows(
        world.service_database, "SELECT body FROM nodes WHERE body LIKE '%This is a secret.%'"
    )


def test_an_answer_with_tool_cards_is_continued(world: World, chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.ask(asked_for.ONE_STEP)
    before = len(world.model.requests)
    chat.carry_on()
    expect(chat.text.last).to_contain_text("And there is more.")
    chat.finished()
    expect(chat.answers).to_have_count(1)
    assert_two_cards(chat.cards())
    chat.screenshot("continued")
    [asked] = [asked for asked in world.model.requests[before:] if not asked.is_task]
    assert [name for _, name in asked.calls] == ["calculate", "get_current_datetime"]
    assert answered(asked) == [call_id for call_id, _ in asked.calls]
    assert asked.messages[-1]["role"] == "assistant"

    chat.reload()
    assert_two_cards(chat.cards())
    [items] = items_of(world, chat.id)
    assert [len(ids) for ids in calls_in(items)] == [2, 2]
    chat.ask("Did it go on?")
    [asked] = world.model.for_question("Did it go on?")
    assert [name for _, name in asked.calls] == ["calculate", "get_current_datetime"]
    text = "".join(str(message["content"]) for message in asked.messages)
    assert text.count("12.5% of 1840 is 230") == text.count("And there is more.") == 1


def _as_user(user: User) -> dict[str, str]:
    """The headers that Open WebUI sends for a user."""
    now = int(time.time())
    claims = {
        "sub": user.id,
        "name": user.name,
        "role": "user",
        "iss": "open-webui",
        "iat": now,
        "exp": now + 300,
    }
    return {
        "authorization": f"Bearer {API_KEY}",
        "x-openwebui-user-jwt": jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(JWT_SECRET)),
    }


def test_two_users_at_once_are_kept_apart(world: World, open_chat: Callable[[User], Chat]) -> None:
    chats = {user.name: (user, open_chat(user)) for user in (world.ada, world.ben)}
    for _, chat in chats.values():
        chat.open()
        chat.choose("research_agent")
    with world.model.held():
        for name, (_, chat) in chats.items():
            chat.send(f"I am {name}.")
        for _, chat in chats.values():
            expect(chat.text).to_contain_text("Answer")
    for name, (_, chat) in chats.items():
        expect(chat.text).to_contain_text(f"You said: I am {name}.")
        chat.finished()
        chat.screenshot("answered")
        chat.ask(f"Who am I, {name}?")
        assert world.model.for_question(f"Who am I, {name}?")[-1].said == [
            f"I am {name}.",
            f"Who am I, {name}?",
        ]

    for name, (user, chat) in chats.items():
        nodes = nodes_of(world, chat.id)
        assert {node["user_id"] for node in nodes} == {user.id}
        assert [node["body"] for node in nodes if node["role"] == "user"] == [
            f"I am {name}.",
            f"Who am I, {name}?",
        ]
        other = world.ben if user == world.ada else world.ada
        address = f"{world.service_url}/agents/research_agent/conversations"
        assert httpx2.get(f"{address}/{chat.id}", headers=_as_user(user)).status_code == 200
        assert httpx2.get(f"{address}/{chat.id}", headers=_as_user(other)).status_code == 404
        listed = httpx2.get(address, headers=_as_user(other)).json()["data"]
        assert chat.id not in {conversation["session_id"] for conversation in listed}


def test_title_tags_and_follow_ups_are_made_and_leave_no_trace_in_memory(
    world: World, chat: Chat
) -> None:
    chat.open()
    chat.choose("research_agent")
    before = len(world.model.requests)
    chat.ask("What are titles made of?")
    for follow_up in asked_for.FOLLOW_UPS:
        expect(chat.page.get_by_role("button", name=f"Follow up: {follow_up}")).to_be_visible()
    expect(chat.page).to_have_title(f"{asked_for.TITLE} / Open WebUI")
    chat.page.get_by_role("button", name="Open Sidebar").first.click()
    expect(chat.page.locator(f'#sidebar a[href="/c/{chat.id}"]')).to_contain_text(asked_for.TITLE)
    chat.screenshot("title-and-follow-ups")

    def stored() -> dict[str, Any]:
        [row] = rows(world.webui_database, "SELECT title, meta FROM chat WHERE id = ?", chat.id)
        return row

    until(lambda: "time" in stored()["meta"], "the tags")
    assert stored()["title"] == asked_for.TITLE
    assert json.loads(stored()["meta"])["tags"] == ["mathematics", "time"]
    tasks = [
        asked
        for asked in world.model.requests[before:]
        if asked.is_task and "What are titles made of?" in asked.question
    ]
    assert len(tasks) == 3
    assert not any(asked.body.get("tools") for asked in tasks)
    assert len([asked for asked in world.model.requests[before:] if not asked.is_task]) == 1
    assert len(nodes_of(world, chat.id)) == 2
    assert not rows(world.service_database, "SELECT body FROM nodes WHERE body LIKE '%### Task:%'")
    assert len(runs_of(world, chat.id)) == 1


def test_an_agent_is_shown_by_its_name_and_suggests_questions(world: World, chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    expect(chat.page.locator("#model-selector-model-button")).to_contain_text("Research")
    expect(chat.page.get_by_text("Answers questions carefully.")).to_be_visible()
    chat.screenshot("new-chat")
    chat.page.get_by_role("button", name="What time is it in Tokyo?").click()
    chat.finished()
    expect(chat.answers.last.locator("#response-message-model-name")).to_have_text("Research")
    chat.screenshot("answered")
    assert world.model.for_question("What time is it in Tokyo?")


def test_the_model_is_given_the_tools_of_its_agent_alone(world: World, chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.ask("Which tools have you?")
    [asked] = world.model.for_question("Which tools have you?")
    assert sorted(tool["function"]["name"] for tool in asked.body["tools"]) == [
        "calculate",
        "get_current_datetime",
        "look_up",
        "take_a_minute",
    ]


def test_a_tool_that_fails_is_shown_so_and_the_answer_goes_on(world: World, chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.ask(asked_for.FAILING_TOOL)
    expect(chat.text).to_contain_text("Nothing can be divided by zero.")
    [card] = chat.cards()
    assert card.name == "calculate"
    assert card.failed
    assert "divides by zero" in card.output
    chat.screenshot("failed-card")
    [call, output] = [
        item for item in items_of(world, chat.id)[0] if item["type"].startswith("function_call")
    ]
    assert (call["status"], output["status"]) == ("failed", "failed")
    assert "divides by zero" in output["output"][0]["text"]
    assert nodes_of(world, chat.id)[1]["steps"]["steps"][0]["results"][0]["is_error"]


def test_what_a_tool_found_is_shown_as_source_and_image(world: World, chat: Chat) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.ask(asked_for.LOOK_UP)
    expect(chat.text).to_contain_text("The moon is made of rock.")
    expect(chat.answers.last.get_by_role("button", name="1 Source")).to_be_visible()
    chat.screenshot("source-and-image")
    chat.reload()
    expect(chat.answers.last.get_by_role("button", name="1 Source")).to_be_visible()
    statement = "SELECT sources, files FROM chat_message WHERE chat_id = ? AND role = 'assistant'"
    [row] = rows(world.webui_database, statement, chat.id)
    [source] = json.loads(row["sources"])
    assert source["source"]["name"] == "Notes on the moon"
    assert source["metadata"][0]["source"] == "https://notes.example.com/moon"
    assert [file["type"] for file in json.loads(row["files"])] == ["image"]
    assert len(nodes_of(world, chat.id)) == 2


def test_an_image_of_the_user_is_seen_by_the_model_and_stored_once(
    world: World, chat: Chat
) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.attach("square.png", "image/png", SQUARE)
    chat.ask("What is in this image?")
    chat.screenshot("image")
    [asked] = world.model.for_question("What is in this image?")
    [image] = asked.images
    assert image.startswith("data:image/")
    chat.reload()
    chat.ask("Which colour has it?")
    assert world.model.for_question("Which colour has it?")[-1].images == [image]
    assert [(node["role"], node["depth"]) for node in nodes_of(world, chat.id)] == [
        ("user", 1),
        ("assistant", 2),
        ("user", 3),
        ("assistant", 4),
    ]


def test_a_refusal_of_the_provider_is_shown_and_the_chat_goes_on(world: World, chat: Chat) -> None:
    _assert_shown(world, chat, asked_for.REFUSED, "out of order (429)")


def test_a_fault_of_the_provider_is_shown_and_the_chat_goes_on(world: World, chat: Chat) -> None:
    _assert_shown(world, chat, asked_for.BROKEN, "out of order (500)")


def _assert_shown(world: World, chat: Chat, question: str, message: str) -> None:
    chat.open()
    chat.choose("research_agent")
    chat.send(question)
    expect(chat.answers.last).to_contain_text(message)
    chat.finished()
    chat.screenshot("error")
    chat.ask("Does it work again?")
    expect(chat.answers.last).to_contain_text("You said: Does it work again?")
    chat.screenshot("works-again")
    assert runs_of(world, chat.id) == ["incomplete", "done"]
    assert [node["body"] for node in nodes_of(world, chat.id) if node["role"] == "user"] == [
        question,
        "Does it work again?",
    ]


def test_two_agents_answer_side_by_side_and_each_remembers_its_own(
    world: World, chat: Chat
) -> None:
    chat.open()
    chat.choose("research_agent", "second_agent")
    chat.ask("Both of you, say something.")
    expect(chat.answers).to_have_count(2)
    for answer in chat.answers.all():
        expect(answer).to_contain_text("You said: Both of you, say something.")
    chat.finished()
    chat.screenshot("side-by-side")
    chat.ask("And again, both of you.")
    expect(chat.answers).to_have_count(4)
    for answer in chat.answers.all()[2:]:
        expect(answer).to_contain_text("You said: And again, both of you.")
    chat.screenshot("side-by-side-again")

    # Open WebUI sends both the one answer that it holds for the chosen one, which the other agent
    # never gave.
    [chosen] = rows(
        world.webui_database,
        "SELECT answer.content, answer.model_id FROM chat_message question"
        " JOIN chat_message answer ON answer.id = question.chat_id || '-' || question.parent_id"
        " WHERE question.chat_id = ? AND question.role = 'user'",
        chat.id,
    )
    for agent in ("research_agent", "second_agent"):
        nodes = nodes_of(world, chat.id, agent)
        own = [node for node in nodes if node["origin"] == "ours"]
        assert [node["depth"] for node in own] == [2, 4]
        [question] = [node for node in nodes if node["depth"] == 3]
        [before] = [node for node in nodes if node["path"] == question["parent"]]
        assert before["body"].strip() == json.loads(chosen["content"])
        assert before["origin"] == ("ours" if agent == chosen["model_id"] else "client")
        assert len(nodes) == (4 if agent == chosen["model_id"] else 5)
        [asked] = [
            asked
            for asked in world.model.for_question("And again, both of you.")
            if agent in asked.messages[0]["content"]
        ]
        assert asked.said == ["Both of you, say something.", "And again, both of you."]


def test_nothing_is_left_in_a_log_as_an_exception(world: World) -> None:
    log = (world.service_database.parent.parent / "log").read_text(encoding="utf-8")
    assert "Traceback" not in log
