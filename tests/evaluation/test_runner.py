"""How cases are run: in sessions of their own, whatever comes of them, and with recorded results in
place of tools."""

import asyncio
from pathlib import Path

import pytest

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import RefusalDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.evaluation.dataset import Expect
from ai_agent_service.evaluation.metrics import METRICS
from ai_agent_service.evaluation.results import Check, Options, TurnAnswer
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.tools.function import tool
from tests.support.evaluation import run_cases
from tests.support.fake_provider import Script, calls, says
from tests.support.service import AGENT

MEMORY = {**AGENT, "resources": ["memory"]}
TURNS = [
    {"input": "I am Ada.", "expect": {"contains": "hello"}},
    {"input": "Who am I?", "expect": {"recalls": "Ada"}},
]


@pytest.mark.parametrize("agent", [AGENT, MEMORY], ids=["without memory", "with memory"])
async def test_the_turns_of_a_case_are_one_conversation_that_no_other_case_knows(
    tmp_path: Path, agent: dict[str, object]
) -> None:
    script = Script(says("Hello."), says("You are Ada."), says("Who knows?"))
    first, second = await run_cases(
        tmp_path,
        script,
        {"id": "a", "turns": TURNS},
        {"id": "b", "input": "Who am I?"},
        agent=agent,
    )
    told = [[message.text for message in request.messages[1:]] for request in script.requests]
    assert told == [["I am Ada."], ["I am Ada.", "Hello.", "Who am I?"], ["Who am I?"]]
    assert [(check.metric, check.turn, check.score) for check in first.checks] == [
        ("contains", 1, 1.0),
        ("recalls", 2, 1.0),
    ]
    assert (first.score, second.score, second.checks) == (1.0, 1.0, ())


async def test_the_score_is_the_share_of_expectations_met(tmp_path: Path) -> None:
    case = {"id": "a", "input": "Hi", "expect": {"contains": ["a", "b", "c"], "regex": "x"}}
    [result] = await run_cases(tmp_path, Script(says("a b")), case)
    assert result.score == 0.5
    assert [check.expected for check in result.failed] == ["with 'c'", "matching 'x'"]


async def test_steps_tokens_and_cost_are_summed(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": "1 + 1"}), usage=Usage(5, 1, cost=0.5)),
        says("2", usage=Usage(7, 2, cost=0.25)),
    )
    [result] = await run_cases(tmp_path, script, {"id": "a", "input": "Hi"})
    assert (result.steps, result.tokens, result.cost) == (2, 15, 0.75)
    [used] = result.answers[0].tools
    assert (used.name, used.arguments, used.content) == ("calculate", {"expression": "1 + 1"}, "2")


async def test_an_error_fails_its_case_with_its_code_and_no_other(tmp_path: Path) -> None:
    script = Script([ProviderUnavailableError("It is down.")], says("fine"))
    broken, fine = await run_cases(
        tmp_path,
        script,
        {"id": "a", "turns": TURNS},
        {"id": "b", "input": "Hi"},
        provider_max_retries=0,
    )
    assert broken.error is not None
    assert (broken.score, broken.error.error, broken.error.problem, len(broken.answers)) == (
        0.0,
        "provider_unavailable",
        "It is down.",
        1,
    )
    assert (fine.score, fine.error) == (1.0, None)


async def test_an_agent_that_raises_anything_fails_its_case(tmp_path: Path) -> None:
    class Raising(BaseAgent):
        type = "raising"

        def run(self, turn: object, context: object) -> object:  # type: ignore[override]
            raise ZeroDivisionError

    [result] = await run_cases(
        tmp_path,
        Script(says("x")),
        {"id": "a", "input": "Hi"},
        agent={**AGENT, "type": "raising"},
        agent_types=[Raising],
    )
    assert result.error is not None
    assert (result.score, result.error.error) == (0.0, "internal_error")


async def test_a_run_ends_at_its_deadline(tmp_path: Path) -> None:
    [result] = await run_cases(
        tmp_path, Script([asyncio.Event()]), {"id": "a", "input": "Hi"}, request_timeout=0.05
    )
    assert result.error is not None
    assert (result.score, result.error.error) == (0.0, "run_timeout")


async def test_cases_run_beside_each_other_up_to_the_limit(tmp_path: Path) -> None:
    both, waiting = asyncio.Event(), 0

    @tool
    async def meet() -> str:
        """Answer once two have called."""
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 10)
        return "met"

    agent = {**AGENT, "allowed_regular_tools": ["meet"]}
    script = Script(calls(("meet", {})), calls(("meet", {})), says("done"))
    results = await run_cases(
        tmp_path,
        script,
        {"id": "a", "input": "1"},
        {"id": "b", "input": "2"},
        agent=agent,
        tools=[meet],
        parallel=2,
    )
    assert [result.answers[0].text for result in results] == ["done", "done"]


async def test_a_refusal_that_the_provider_tells_is_one(tmp_path: Path) -> None:
    script = Script([RefusalDelta("No."), ModelFinished("stop", (), Usage(1, 1))])
    [result] = await run_cases(
        tmp_path, script, {"id": "a", "input": "Hi", "expect": {"refusal": True}}
    )
    assert (result.score, result.answers[0].text) == (1.0, "No.")


async def test_another_model_may_be_asked(tmp_path: Path) -> None:
    script = Script(says("x"))
    await run_cases(tmp_path, script, {"id": "a", "input": "Hi"}, options=Options(model="better"))
    assert [request.model for request in script.requests] == ["better"]


async def test_a_metric_of_ones_own_may_find_an_answer_half_right(tmp_path: Path) -> None:
    class Brevity:
        name = "brevity"

        async def evaluate(self, expect: Expect, answer: TurnAnswer) -> list[Check]:
            return [Check(self.name, 1 / len(answer.text.split()), "one word", answer.text)]

    case = {"id": "a", "input": "Hi", "expect": {"contains": "two"}}
    [result] = await run_cases(
        tmp_path, Script(says("two words")), case, metrics=[*METRICS, Brevity()]
    )
    assert [(check.metric, check.score) for check in result.checks] == [
        ("contains", 1.0),
        ("brevity", 0.5),
    ]
    assert result.score == 0.75
