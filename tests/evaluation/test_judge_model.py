"""A judge is asked for a form, and again where its answer has not that form; without an answer
there is no judgement."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from ai_agent_service.core.errors import (
    ContextTooLongError,
    InvalidRequestError,
    ProviderRateLimitError,
)
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.usage import Usage, sum_usage
from ai_agent_service.evaluation.judge_model import (
    ATTEMPTS,
    MAX_ANSWER,
    Judge,
    JudgementError,
)
from ai_agent_service.evaluation.model_client import to_strict_schema
from ai_agent_service.evaluation.model_option import Model
from ai_agent_service.providers.base import ModelEvent, ModelRequest
from tests.support.judges import Said, ScriptedJudge


class Verdict(BaseModel):
    score: float = Field(ge=0)
    reason: str | None = None


class Verdicts(BaseModel):
    verdicts: list[Verdict]


GOOD = {"score": 0.5, "reason": "So so."}


def without_fault(verdict: Verdict) -> str | None:
    return None


async def asked(
    provider: ScriptedJudge, fault: Any = without_fault, usages: list[Usage | None] | None = None
) -> Verdict:
    return await provider.judge().ask(
        "How good is it?", Verdict, fault, usages if usages is not None else []
    )


async def test_the_form_is_asked_for_strictly_and_at_temperature_0() -> None:
    provider = ScriptedJudge({"Verdict": GOOD})
    assert (await asked(provider)).score == 0.5
    [request] = provider.requests
    form = request.settings["response_format"]["json_schema"]
    assert (request.settings["temperature"], form["name"], form["strict"]) == (0, "Verdict", True)
    assert (form["schema"]["required"], form["schema"]["additionalProperties"]) == (
        ["score", "reason"],
        False,
    )
    assert to_strict_schema(Verdicts.model_json_schema())["$defs"]["Verdict"]["required"] == [
        "score",
        "reason",
    ]


@pytest.mark.parametrize("around", ["```json\n%s\n```", "Let me think.\n%s", "%s\nThat is all."])
async def test_what_stands_around_the_object_does_not_matter(around: str) -> None:
    assert (await asked(ScriptedJudge({"Verdict": around % json.dumps(GOOD)}))).reason == "So so."


@pytest.mark.parametrize(
    ("rubbish", "told"),
    [
        ("", "it has no JSON object"),
        ("I like it.", "it has no JSON object"),
        (
            'It wants me to say {"score": 1, "reason": "Best."}, but it is bad.',
            "it has no JSON object on lines of its own",
        ),
        (
            'It would have me say {"score": 1, "reason": "Best."}',
            "it has no JSON object on lines of its own",
        ),
        ({"score": True}, "score: Input should be a valid number"),
        ({"score": "1"}, "score: Input should be a valid number"),
        ("}{", "it has no JSON object"),
        ('{"score": }', "Invalid JSON"),
        ({"score": "high"}, "score: Input should be a valid number"),
        ({"reason": "None."}, "score: Field required"),
        ({"score": -1}, "score: Input should be greater than or equal to 0"),
        ('{"score": ' + "[" * 1000 + "]" * 1000 + "}", "recursion limit exceeded"),
    ],
)
async def test_rubbish_is_told_back_and_asked_again_and_then_is_not_judged(
    rubbish: Said, told: str
) -> None:
    usages: list[Usage | None] = []
    repaired = ScriptedJudge({"Verdict": [rubbish, rubbish, GOOD]})
    assert (await asked(repaired, usages=usages)).score == 0.5
    assert sum_usage(usages) == Usage(300, 30, cost=0.003)
    question, _, again = repaired.requests[-1].messages
    assert (question.text, told in again.text, '"required":["score","reason"]' in again.text) == (
        "How good is it?",
        True,
        True,
    )
    stubborn = ScriptedJudge({"Verdict": rubbish})
    with pytest.raises(JudgementError, match="no answer that can be used, 3 times") as caught:
        await asked(stubborn)
    assert (len(stubborn.requests), told in str(caught.value)) == (ATTEMPTS, True)


async def test_an_answer_with_a_fault_is_rubbish_too() -> None:
    def too_low(verdict: Verdict) -> str | None:
        return "that is too low" if verdict.score < 1 else None

    assert (await asked(ScriptedJudge({"Verdict": [GOOD, {"score": 2}]}), too_low)).score == 2
    with pytest.raises(JudgementError, match="that is too low"):
        await asked(ScriptedJudge({"Verdict": GOOD}), too_low)


async def test_a_model_that_refuses_settings_is_asked_without_them_from_then_on() -> None:
    refused = InvalidRequestError("No such field.")
    provider = ScriptedJudge({"Verdict": [refused, refused, GOOD]})
    judge = provider.judge()
    for _ in range(2):
        await judge.ask("How good is it?", Verdict, without_fault, [])
    assert [sorted(request.settings) for request in provider.requests] == [
        ["response_format", "temperature"],
        ["response_format"],
        [],
        [],
    ]


async def test_a_question_that_is_refused_whatever_the_settings_takes_none_away_from_others() -> (
    None
):
    refused = InvalidRequestError("This is against the rules.")
    provider = ScriptedJudge({"Verdict": [refused, refused, refused, GOOD]})
    judge = provider.judge()
    with pytest.raises(JudgementError, match="against the rules"):
        await judge.ask("How good is it?", Verdict, without_fault, [])
    await judge.ask("How good is it?", Verdict, without_fault, [])
    assert sorted(provider.requests[-1].settings) == ["response_format", "temperature"]


@pytest.mark.parametrize(
    "error", [ProviderRateLimitError("Slow down."), ContextTooLongError("That is long.")]
)
async def test_an_error_of_the_provider_is_no_judgement(error: Exception) -> None:
    provider = ScriptedJudge({"Verdict": error})
    with pytest.raises(JudgementError) as caught:
        await asked(provider)
    assert (str(error) in str(caught.value), len(provider.requests)) == (True, 1), (
        "the provider retries by itself"
    )


class Endless(ScriptedJudge):
    """Says `word` for ever, or nothing for ever where it is empty, whatever the deadline of the
    request."""

    def __init__(self, word: str) -> None:
        super().__init__({})
        self.word = word
        self.said = 0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        if not self.word:
            await asyncio.Event().wait()
        while True:
            self.said += len(self.word)
            yield TextDelta(self.word)


async def test_a_judge_that_does_not_end_by_itself_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ai_agent_service.providers.complete.GRACE_SECONDS", 0.0)
    with pytest.raises(JudgementError, match=r"it took longer than 0\.05 s"):
        await Judge(Model(Endless(""), "m"), 0.05, 1).ask(
            "How good is it?", Verdict, without_fault, []
        )
    endless = Endless("{" * 1000)
    with pytest.raises(JudgementError, match="longer than 200,000 characters"):
        await Judge(Model(endless, "m"), 60, 1).ask("How good is it?", Verdict, without_fault, [])
    assert endless.said <= ATTEMPTS * (MAX_ANSWER + 1000)


@pytest.mark.parametrize("parallel", [1, 2])
async def test_no_more_is_asked_at_once_than_is_allowed(parallel: int) -> None:
    provider = ScriptedJudge({"Verdict": GOOD})
    judge = provider.judge(parallel=parallel)
    await asyncio.gather(
        *(judge.ask("How good is it?", Verdict, without_fault, []) for _ in range(5))
    )
    assert (len(provider.requests), provider.most_at_once) == (5, parallel)


def test_a_schema_keeps_its_meaning() -> None:
    schema = {"type": "object", "properties": {"default": {"type": "string", "default": "x"}}}
    kept = {
        "type": "object",
        "properties": {"default": {"type": "string"}},
        "required": ["default"],
        "additionalProperties": False,
    }
    assert to_strict_schema(schema) == kept
