"""Addresses: what makes two messages the same one, and what does not."""

import sys

import pytest

from ai_agent_service.core.messages import (
    AudioPart,
    Content,
    FilePart,
    ImagePart,
    Message,
    TextPart,
    ToolCall,
)
from ai_agent_service.memory.message_tree import MessageHasher
from ai_agent_service.storage.tables import HASH_BYTES
from tests.support.memory import in_turn

ADDRESSES = MessageHasher(bytes(32))
ROOT = bytes(HASH_BYTES)
CALL = ToolCall("c1", "calculate", "{}")


def conversation(*texts: str) -> list[Message]:
    """Messages, the user's and the assistant's in turn."""
    return [Message(role=message["role"], content=message["content"]) for message in in_turn(texts)]


def paths(*texts: str) -> list[bytes]:
    """The addresses of a conversation's messages."""
    return [entry.path for entry in ADDRESSES.build_entries(conversation(*texts), ROOT)]


def test_an_address_depends_on_all_that_was_said_before() -> None:
    one, other = paths("a", "b", "c"), paths("A", "b", "c")
    assert not set(one) & set(other)
    assert paths("a", "b") == one[:2]


def test_the_messages_of_a_conversation_follow_each_other() -> None:
    entries = ADDRESSES.build_entries(conversation("a", "b", "c"), ROOT)
    assert [entry.parent for entry in entries] == [ROOT, entries[0].path, entries[1].path]
    assert [entry.depth for entry in entries] == [1, 2, 3]
    assert [entry.is_question for entry in entries] == [True, False, True]
    (following,) = ADDRESSES.build_entries(conversation("c"), entries[1].path, 2)
    assert (following.path, following.depth) == (entries[2].path, 3)


def test_a_question_and_an_answer_of_the_same_words_differ() -> None:
    assert ADDRESSES.hash_question(ROOT, "Hi") != ADDRESSES.hash_answer(ROOT, "Hi")


def test_each_database_has_its_own_addresses() -> None:
    other = MessageHasher(bytes([1] * 32))
    assert other.hash_question(ROOT, "Hi") != ADDRESSES.hash_question(ROOT, "Hi")
    assert other.hash_session("t", "u", "a", "s") != ADDRESSES.hash_session("t", "u", "a", "s")


def test_names_that_join_to_the_same_text_are_different_sessions() -> None:
    names = [
        ("t", "u", "a", "s"),
        ("t", "u", "as", ""),
        ("t", "ua", "", "s"),
        ("t", "u", '","a', "s"),
        ("u", "t", "a", "s"),
    ]
    assert len({ADDRESSES.hash_session(*each) for each in names}) == len(names)


@pytest.mark.parametrize(
    ("content", "same"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("a b", "  a \t\r\n b\n"),
        ("a b", (TextPart("a"), TextPart("b"))),
        ("a\u00a0b", "a b"),
        (
            (ImagePart("data:image/png;base64,AA"),),
            (ImagePart("data:image/png;base64,AA", "high"),),
        ),
        ((TextPart("a"), ImagePart("u")), (ImagePart("u"), TextPart("a"))),
        ((FilePart(file_id="f", filename="a.txt"),), (FilePart(file_id="f", filename="b.txt"),)),
    ],
    ids=[
        "unicode form",
        "white space",
        "parts",
        "no-break space",
        "detail",
        "order of text and image",
        "file name",
    ],
)
def test_these_are_the_same_question(content: Content, same: Content) -> None:
    assert ADDRESSES.hash_question(ROOT, content) == ADDRESSES.hash_question(ROOT, same)


@pytest.mark.parametrize(
    ("content", "other"),
    [
        ("ab", "a b"),
        ("a", "A"),
        ("a", (TextPart("a"), ImagePart("u"))),
        ((ImagePart("u"),), (ImagePart("v"),)),
        ((ImagePart("u"), ImagePart("v")), (ImagePart("v"), ImagePart("u"))),
        ((AudioPart("AA", "wav"),), (ImagePart("AA"),)),
        ((FilePart(file_id="AA"),), (FilePart(file_data="AA"),)),
        ("a\x00b", "a b"),
    ],
    ids=["word boundary", "case", "image", "other image", "order of images", "kind", "file", "NUL"],
)
def test_these_are_different_questions(content: Content, other: Content) -> None:
    assert ADDRESSES.hash_question(ROOT, content) != ADDRESSES.hash_question(ROOT, other)


def test_an_image_is_not_the_text_that_would_stand_for_it() -> None:
    image = ADDRESSES.hash_question(ROOT, (TextPart("a"), ImagePart("u")))
    assert image != ADDRESSES.hash_question(ROOT, (TextPart("a iu"),))
    assert image != ADDRESSES.hash_question(ROOT, (TextPart("a"), TextPart("u")))


def test_white_space_does_not_tell_answers_apart() -> None:
    assert ADDRESSES.hash_answer(ROOT, "Let me see.It is 42.") == ADDRESSES.hash_answer(
        ROOT, " Let me see.\n\nIt is 42. "
    )
    assert ADDRESSES.hash_answer(ROOT, "caf\u00e9") == ADDRESSES.hash_answer(ROOT, "cafe\u0301")
    assert ADDRESSES.hash_answer(ROOT, "42") != ADDRESSES.hash_answer(ROOT, "43")


@pytest.mark.parametrize("letter", ["b", "\u00fc"])
def test_no_white_space_counts_in_an_answer(letter: str) -> None:
    spaces = [chr(code) for code in range(sys.maxunicode) if chr(code).isspace()]
    assert len(spaces) > 20
    assert {ADDRESSES.hash_answer(ROOT, f"{space}a{space}{letter}") for space in spaces} == {
        ADDRESSES.hash_answer(ROOT, f"a{letter}")
    }


def test_system_messages_have_no_address() -> None:
    system = Message(role="system", content="Be brief.")
    without = conversation("a", "b", "c")
    assert ADDRESSES.build_entries(
        [system, *without[:1], system, *without[1:]], ROOT
    ) == ADDRESSES.build_entries(without, ROOT)


def test_all_between_two_questions_is_one_answer() -> None:
    messages = [
        Message(role="user", content="?"),
        Message(role="assistant", content="Well. ", tool_calls=(CALL,)),
        Message(role="tool", content="42", tool_call_id="c1"),
        Message(role="assistant", content="It is 42."),
        Message(role="user", content="Thanks"),
    ]
    question, answer, thanks = ADDRESSES.build_entries(messages, ROOT)
    assert [entry.path for entry in (question, answer, thanks)] == paths(
        "?", "Well. It is 42.", "Thanks"
    )
    assert answer.content == "Well. It is 42."
    (step,) = answer.steps
    assert (step.text, step.calls) == ("Well. ", (CALL,))
    assert [(result.call_id, result.name, result.content) for result in step.results] == [
        ("c1", "calculate", "42")
    ]
    assert answer.last == "It is 42."


def test_a_result_of_no_call_is_no_step() -> None:
    messages = [
        Message(role="user", content="?"),
        Message(role="tool", content="before", tool_call_id="c1"),
        Message(role="assistant", tool_calls=(CALL,)),
        Message(role="tool", content="of another", tool_call_id="c2"),
    ]
    _, answer = ADDRESSES.build_entries(messages, ROOT)
    assert [(step.calls, step.results) for step in answer.steps] == [((CALL,), ())]


def test_an_answer_in_several_parts_is_told_as_one() -> None:
    parts = (TextPart("It is "), TextPart("42."))
    (answer,) = ADDRESSES.build_entries([Message(role="assistant", content=parts)], ROOT)
    (plain,) = ADDRESSES.build_entries([Message(role="assistant", content="It is 42.")], ROOT)
    assert answer.path == plain.path


def test_settings_that_differ_have_different_digests() -> None:
    assert ADDRESSES.hash_settings("prompt", "p", None) == ADDRESSES.hash_settings(
        "prompt", "p", None
    )
    assert ADDRESSES.hash_settings("prompt", "p", None) != ADDRESSES.hash_settings(
        "prompt", "p", "None"
    )
