"""What a run of a dataset came to, and the folder that it is kept in."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

EPSILON = 1e-9
"""What rounding makes of no difference."""


class UsedTool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call that was made, and what the model was told of it; `arguments` is None where the model
    wrote no JSON object.

    `seconds` is its wall time, 0 where it was replayed.
    """

    name: str
    arguments: dict[str, Any] | None
    content: str
    is_error: bool = False
    outcome: str = "success"
    seconds: float = 0.0


class TurnAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of one turn. `error` is the code of what broke it, `problem` its message; `tokens`
    and `cost` are None where untold."""

    input: str
    text: str = ""
    tools: tuple[UsedTool, ...] = ()
    refused: bool = False
    steps: int = 0
    seconds: float = 0.0
    tokens: int | None = None
    cost: float | None = None
    error: str | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One expectation: how far it was met, from 0 to 1; what was expected, and what came. `turn`
    counts from 1.

    `not_judged` says why a judge gave no score, which then is 0; `tokens` and `cost`, in US
    dollars, are what the judge took.
    """

    metric: str
    score: float
    expected: str
    came: str
    turn: int = 1
    threshold: float = 1.0
    not_judged: str = ""
    tokens: int = 0
    cost: float = 0.0

    @property
    def is_met(self) -> bool:
        """Whether it was met well enough."""
        return not self.not_judged and self.score >= self.threshold - EPSILON


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one case; `attempt` counts from 1."""

    id: str
    agent: str
    attempt: int = 1
    weight: float = 1.0
    tags: tuple[str, ...] = ()
    score: float
    checks: tuple[Check, ...] = ()
    answers: tuple[TurnAnswer, ...] = ()

    @property
    def error(self) -> TurnAnswer | None:
        """The turn that broke, if one did; there is none after it."""
        return next((answer for answer in self.answers if answer.error is not None), None)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The expectations that were not met."""
        return tuple(check for check in self.checks if not check.is_met and not check.not_judged)

    @property
    def not_judged(self) -> tuple[Check, ...]:
        """The expectations of which it is not known whether they were met."""
        return tuple(check for check in self.checks if check.not_judged)

    @property
    def steps(self) -> int:
        """Of all turns."""
        return sum(answer.steps for answer in self.answers)

    @property
    def seconds(self) -> float:
        """Of all turns."""
        return sum(answer.seconds for answer in self.answers)

    @property
    def tokens(self) -> int:
        """Of all turns."""
        return sum(answer.tokens or 0 for answer in self.answers)

    @property
    def cost(self) -> float:
        """Of all turns, in US dollars."""
        return sum(answer.cost or 0.0 for answer in self.answers)


class RunAgent(msgspec.Struct, frozen=True):
    """What an agent was during a run."""

    version: str
    provider: str
    model: str

    @property
    def description(self) -> str:
        """All three in words."""
        return f"{self.version} by {self.provider} {self.model}"


class Options(msgspec.Struct, frozen=True):
    """How a dataset is run. `agent` is that of cases that name none, `model` replaces the agents'
    own, `judge` is `PROVIDER:MODEL`."""

    agent: str | None = None
    model: str | None = None
    repeat: int = 1
    record: bool = False
    judge: str | None = None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run as a whole; `finished` and what follows it once it has come to its
    end. Times are ISO 8601 in UTC."""

    dataset: str
    started: str
    service_version: str
    options: Options
    agents: Mapping[str, RunAgent]
    finished: str | None = None
    cases: int = 0
    errors: int = 0
    score: float = 0.0
    attempts: tuple[float, ...] = ()
    """The score of each attempt at the whole dataset."""
    deviation: float = 0.0
    """The standard deviation of `attempts`."""
    minimum: float = 0.0
    maximum: float = 0.0
    metrics: Mapping[str, float] = {}
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    cost: float = 0.0
    not_judged: int = 0
    """The cases of which an expectation was not judged in some attempt."""
    judge_tokens: int = 0
    judge_cost: float = 0.0


def group_by_case(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Return the attempts at each case, by its id."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.id, []).append(result)
    return found


def describe_failures(attempts: Iterable[Result]) -> str:
    """Say on one line what broke `attempts`, was not judged or not met; empty if nothing."""
    errors, unknown, failed = [], [], []
    for attempt in attempts:
        if (answer := attempt.error) is not None:
            errors.append(f"error {answer.error}: {answer.problem}")
        unknown += [
            f"not judged: {check.metric}: {check.not_judged}" for check in attempt.not_judged
        ]
        failed += [f"{check.metric}: {check.expected}" for check in attempt.failed]
    return " ".join("; ".join(dict.fromkeys([*errors, *unknown, *failed])).split())
