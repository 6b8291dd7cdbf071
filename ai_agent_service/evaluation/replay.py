"""Tools that are not run: what they once answered is told to the model instead."""

from typing import Any

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ToolCall, ToolOutcome, ToolResult
from ai_agent_service.evaluation.dataset import RecordedResult
from ai_agent_service.evaluation.matching import matches
from ai_agent_service.tools.toolset import Toolset, parse_arguments


class Replay:
    """The recorded results of one attempt at a case, and `notes` of the calls for which there was
    none."""

    def __init__(self, results: tuple[RecordedResult, ...]) -> None:
        self._results = results
        self._used: set[int] = set()
        self.notes: list[str] = []

    def take(self, call: ToolCall) -> RecordedResult | None:
        """The next result for the call's arguments, else the next that is for any; one for the same
        arguments stands when all are used."""
        try:
            arguments = {"equals": parse_arguments(call.arguments)}
        except ToolError:
            return None
        named = [number for number, each in enumerate(self._results) if each.name == call.name]
        same = [
            number
            for number in named
            if self._results[number].arguments is not None
            and matches(arguments, self._results[number].arguments)
        ]
        any_ = [number for number in named if self._results[number].arguments is None]
        chosen = next(
            (number for number in (*same, *any_) if number not in self._used),
            same[-1] if same else None,
        )
        if chosen is None:
            return None
        self._used.add(chosen)
        return self._results[chosen]


class Replays(dict[str, Replay]):
    """The replays under way, by the user whose run it is: each attempt at a case has a user of its
    own."""


class ReplayToolset(Toolset):
    """A Toolset that answers from the replay of the run, if there is one, and runs the tool if
    there is none."""

    def __init__(self, replays: Replays, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._replays = replays

    async def execute(self, call: ToolCall, context: RunContext) -> ToolResult:
        """Carries out `call`; see Toolset."""
        replay = self._replays.get(context.user)
        if replay is None:
            return await super().execute(call, context)
        found = replay.take(call)
        if found is not None:
            outcome: ToolOutcome = "error" if found.is_error else "success"
            return ToolResult(
                call_id=call.id,
                name=call.name,
                content=found.content,
                is_error=found.is_error,
                outcome=outcome,
            )
        replay.notes.append(f"no recorded result for {call.name} with {call.arguments or '{}'}")
        content = (
            f"Error: this is a replay, and there is no recorded result of {call.name!r} for these"
            " arguments."
        )
        return ToolResult(
            call_id=call.id, name=call.name, content=content, is_error=True, outcome="refused"
        )
