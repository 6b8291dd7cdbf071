"""Find calls that a model repeats without need."""

import msgspec

from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.tools.toolset import parse_arguments

MAX_REPETITIONS = 2
"""How often the same call, or the same cycle of steps, runs in a row; after that the model gets a
note that its results stand."""

MAX_CYCLE = 4
"""The longest cycle of steps that counts as one."""

_Key = tuple[str, bytes]


class RepetitionCounter:
    """Counts how often in a row each call was made with the same arguments, and finds steps that
    go in circles, such as A, B, A, B, A, B."""

    def __init__(self) -> None:
        self._counts: dict[_Key, int] = {}
        self._steps: list[frozenset[_Key]] = []

    def find_repeated(self, calls: tuple[ToolCall, ...]) -> frozenset[str]:
        """Return the ids of those `calls`, one step's, that are repeated too often to run; all of
        them are counted."""
        counts: dict[_Key, int] = {}
        repeated = set()
        for call in calls:
            key = (call.name, _canonicalize(call.arguments))
            counts[key] = counts.get(key, self._counts.get(key, 0)) + 1
            if counts[key] > MAX_REPETITIONS:
                repeated.add(call.id)
        self._counts = counts
        self._steps.append(frozenset(counts))
        return frozenset(call.id for call in calls) if self._is_circling() else frozenset(repeated)

    def _is_circling(self) -> bool:
        """Return whether the last step begins or goes on with the third round of a cycle."""
        *earlier, last = self._steps
        for length in range(2, MAX_CYCLE + 1):
            rounds = earlier[-MAX_REPETITIONS * length :]
            if (
                len(rounds) == MAX_REPETITIONS * length
                and rounds[:length] == rounds[length:]
                and last == rounds[0]
            ):
                return True
        return False


def _canonicalize(arguments: str) -> bytes:
    try:
        return msgspec.json.encode(parse_arguments(arguments), order="sorted")
    except ToolError:
        return arguments.encode(errors="replace")
