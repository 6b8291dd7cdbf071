"""A model writes cases: those of no use are told to it, and only what can be read as a dataset
comes out."""

import json
from typing import Any

import pytest

from ai_agent_service.core.errors import (
    ContextTooLongError,
    InternalError,
    InvalidRequestError,
    ProviderUnavailableError,
)
from ai_agent_service.core.messages import ToolSpec
from ai_agent_service.core.usage import Usage
from ai_agent_service.evaluation.case_writer import (
    BATCH_SIZE,
    MAX_EMPTY_PIECES,
    MAX_TRIES,
    Generator,
    TargetAgent,
)
from ai_agent_service.evaluation.documents import Piece
from ai_agent_service.evaluation.model_option import Model
from tests.support.fake_provider import Action, Script, says

SHOP = Piece("docs/shop.md", "Open from Tuesday to Saturday. A repair costs 25 euros.")
TOOL = ToolSpec("calculate", "Calculates.", {"type": "object"})


def case(name: str, asked: str, **expect: Any) -> dict[str, Any]:
    return {"id": name, "input": asked, "expect": expect or {"contains": ["25"]}}


def answer(*cases: Any, **named: Any) -> list[Action]:
    return says(json.dumps({"cases": cases}), **named)


def questions(count: int, word: str = "thing") -> list[dict[str, Any]]:
    return [
        case(f"{word}_{number}", f"What does {word} number {number} cost?")
        for number in range(count)
    ]


async def generated(
    script: Script, *wanted: tuple[Piece, int], agent: TargetAgent | None = None
) -> tuple[list[dict[str, Any]], Generator]:
    generator = Generator(Model(script, "m"), seconds=5, agent=agent)
    return [case async for case in generator.generate_cases(wanted or [(SHOP, 2)])], generator


async def test_cases_are_written_for_people_to_read() -> None:
    filled = {"contains": ["25"], "not_contains": [], "regex": None, "refusal": False}
    script = Script(
        answer(
            {"expect": filled, "input": "What is a repair?", "id": "Price of a Repair!"},
            case("case 2", "Open on Sundays, please?"),
        )
    )
    cases, generator = await generated(script)
    assert [list(each) for each in cases] == [["id", "input", "expect", "source"]] * 2
    assert cases[0] == {
        "id": "price_of_a_repair",
        "input": "What is a repair?",
        "expect": {"contains": ["25"], "refusal": False},
        "source": "docs/shop.md",
    }
    assert cases[1]["id"] == "open_on_sundays_please"
    assert (generator.questions, generator.usage, generator.dropped) == (1, Usage(10, 1), [])
    [request] = script.requests
    form = request.settings["response_format"]["json_schema"]
    assert (form["strict"], form["schema"]["properties"]["cases"]["items"]["required"]) == (
        True,
        ["id", "input", "expect"],
    )
    assert (
        "tools"
        not in form["schema"]["properties"]["cases"]["items"]["properties"]["expect"]["properties"]
    )
    assert SHOP.text in request.messages[-1].text
    assert request.messages[-1].text.endswith("Write 2 cases.")


async def test_an_agent_is_told_of_and_named_in_its_cases() -> None:
    wanted = case("sum", "What is 3 * 7?", tools=[{"name": "calculate"}], contains=["21"])
    script = Script(
        answer(wanted, case("no", "What is 4 * 7?", tools=[{"name": "calc"}])),
        answer(case("b", "And 5 * 7?")),
    )
    cases, _ = await generated(
        script, (Piece("", "Sums."), 2), agent=TargetAgent("shop", "You are a shop.", (TOOL,))
    )
    assert [list(each) for each in cases] == [["id", "agent", "input", "expect"]] * 2
    assert cases[0]["agent"] == "shop"
    task = script.requests[0].messages[0].text
    assert ("You are a shop." in task, "- calculate: Calculates." in task) == (True, True)
    expect = script.requests[0].settings["response_format"]["json_schema"]["schema"]["properties"][
        "cases"
    ]["items"]["properties"]["expect"]
    assert expect["properties"]["forbidden_tools"]["items"]["enum"] == ["calculate"]
    assert "'no': expect: there is no tool 'calc'" in script.requests[1].messages[-1].text


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (case("bad", "Is it?", regex="("), "'bad': expect.regex: this is no regular expression"),
        (
            {"id": "bad", "input": "Is it?", "expect": {}},
            "'bad': expect: nothing is expected of the answer",
        ),
        ({"id": "bad", "expect": {"contains": ["a"]}}, "'bad': : a case has either input or turns"),
        (case("bad", "Is it?", exakt="a"), "'bad': expect.exakt: this field is not known"),
        (
            case("bad", "Is it closed on Sundays?", contains=["CLOSED"]),
            "'bad': expect.contains: the question says this already",
        ),
        (case("bad", "Is it?", tools=[{"name": "t"}]), "'bad': expect: there is no tool 't'"),
        (
            case("bad", "what is the price of A REPAIR?!"),
            "'bad': there is this question already: 'What is the price of a repair?'",
        ),
        ("no object", "'no object': this is not an object"),
    ],
)
async def test_a_case_of_no_use_is_told_to_the_model_and_then_dropped(bad: Any, told: str) -> None:
    good = case("good", "What is the price of a repair?")
    script = Script(answer(good, bad), answer(bad), answer(bad))
    cases, generator = await generated(script)
    assert [each["id"] for each in cases] == ["good"]
    assert len(script.requests) == MAX_TRIES
    said = script.requests[1].messages
    assert [message.role for message in said] == ["system", "user", "assistant", "user"]
    assert told in said[-1].text
    assert "Write 1 more" in said[-1].text
    [dropped] = generator.dropped
    assert (told in dropped, dropped.startswith("docs/shop.md: ")) == (True, True)


async def test_questions_that_differ_by_a_number_are_two_and_ids_stay_apart() -> None:
    script = Script(
        answer(
            case("a", "What do 2 days of a bicycle cost?"),
            case("a", "What do 3 days of a bicycle cost?"),
        )
    )
    cases, generator = await generated(script)
    assert [each["id"] for each in cases] == ["a", "what_do_3_days_of_a"]
    assert generator.duplicates == 0


@pytest.mark.parametrize(
    "wrapped",
    ["{}", "Here they are:\n```json\n{}\n```\nDone.", "I have: {} - well.", "Nothing of the kind."],
    ids=["plain", "fenced", "words", "none"],
)
async def test_json_is_found_within_words(wrapped: str) -> None:
    text = json.dumps({"cases": [case("a", "What is it?")]})
    cases, generator = await generated(
        Script(
            says(wrapped.replace("{}", text)),
            says("[" + json.dumps(case("a", "What is it?")) + "]"),
        ),
        (SHOP, 1),
    )
    assert [each["id"] for each in cases] == ["a"]
    assert generator.questions == (1 if "{}" in wrapped else 2)


async def test_lines_of_json_are_cases_too_and_an_answer_that_is_cut_off_is_told() -> None:
    lines = "\n".join(json.dumps(each) for each in questions(2))
    script = Script(says('{"cases": [{"id": "a", "inp', reason="length"), says(lines))
    cases, _ = await generated(script)
    assert len(cases) == 2
    assert "it is cut off: write less" in script.requests[1].messages[-1].text


async def test_a_provider_that_knows_no_schema_is_asked_without_from_then_on() -> None:
    script = Script(
        [InvalidRequestError("response_format is not supported")],
        answer(*questions(1)),
        answer(*questions(1, "other")),
    )
    cases, _ = await generated(script, (SHOP, 1), (SHOP, 1))
    assert len(cases) == 2
    assert [bool(request.settings) for request in script.requests] == [True, False, False]
    with pytest.raises(ContextTooLongError):
        await generated(Script([ContextTooLongError("too long")]))


async def test_many_are_asked_for_in_batches_which_are_told_what_there_is() -> None:
    script = Script(answer(*questions(BATCH_SIZE)), answer(*questions(5, "other")))
    cases, _ = await generated(script, (SHOP, BATCH_SIZE + 5))
    assert len(cases) == BATCH_SIZE + 5
    asked = [request.messages[-1].text for request in script.requests]
    assert [text.splitlines()[-1] for text in asked] == ["Write 10 cases.", "Write 5 cases."]
    assert "- What does thing number 9 cost?" in asked[1]


async def test_more_than_were_asked_for_are_left() -> None:
    cases, generator = await generated(Script(answer(*questions(5))), (SHOP, 2))
    assert ([each["id"] for each in cases], generator.questions, generator.dropped) == (
        ["thing_0", "thing_1"],
        1,
        [],
    )


async def test_what_one_piece_has_too_little_for_comes_of_the_next() -> None:
    script = Script(answer(*questions(1)), answer(), answer(), answer(*questions(3, "other")))
    cases, _ = await generated(script, (SHOP, 2), (Piece("b.md", "More."), 2))
    assert [each["source"] for each in cases] == ["docs/shop.md", *["b.md"] * 3]


async def test_a_model_that_writes_nothing_of_use_is_given_up() -> None:
    cases, generator = await generated(
        Script(says("No.")), *((Piece(f"{n}.md", "x"), 1) for n in range(50))
    )
    assert (cases, generator.questions) == ([], MAX_EMPTY_PIECES * MAX_TRIES)


async def test_a_provider_that_raises_anything_is_an_error_of_the_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(InternalError, match="scripted failed unexpectedly"):
        await generated(Script([ValueError("a plug-in's")]))
    assert "ValueError" in caplog.text


async def test_what_came_before_the_provider_failed_is_there() -> None:
    script = Script(answer(*questions(BATCH_SIZE)), [ProviderUnavailableError("away")])
    cases = Generator(Model(script, "m"), seconds=5).generate_cases([(SHOP, 2 * BATCH_SIZE)])
    assert len([await anext(cases) for _ in range(BATCH_SIZE)]) == BATCH_SIZE
    with pytest.raises(ProviderUnavailableError):
        await anext(cases)
