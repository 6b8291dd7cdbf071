"""The lifecycle of a run, as a pure function: no I/O, no clock.

    queued -Start-> running -Finish-> completed | incomplete
    queued, running -Fail-> failed          queued, running -Cancel-> cancelled

The four states on the right are final: a command that comes later changes nothing.
"""

from typing import Literal

import msgspec

from ai_agent_service.core.events import FinishReason

State = Literal["queued", "running", "completed", "incomplete", "failed", "cancelled"]


class Start(msgspec.Struct, frozen=True):
    """The run has its slot."""


class Finish(msgspec.Struct, frozen=True):
    """The run came to its end for `reason`, and its last event was delivered."""

    reason: FinishReason


class Fail(msgspec.Struct, frozen=True):
    """An error with this code ended the run."""

    code: str


class Cancel(msgspec.Struct, frozen=True):
    """The caller `left`, or the service was `stopped`."""

    cause: Literal["left", "stopped"]


Command = Start | Finish | Fail | Cancel


class Lifecycle(msgspec.Struct, frozen=True):
    """Where a run is; `outcome` is the word for it in logs, metrics and the audit log: empty until
    the end, then `answered`, `left`, `stopped` or an error's code."""

    state: State = "queued"
    outcome: str = ""

    @property
    def is_final(self) -> bool:
        """Return whether no command changes it any more."""
        return self.outcome != ""


def decide(now: Lifecycle, command: Command) -> Lifecycle:
    """Return what `command` makes of a run; the same object where it does not apply."""
    if now.is_final:
        return now
    match command:
        case Start():
            return Lifecycle("running") if now.state == "queued" else now
        case Finish(reason=reason):
            if now.state != "running":
                return now
            is_complete = reason in ("stop", "tool_calls")
            return Lifecycle("completed" if is_complete else "incomplete", "answered")
        case Fail(code=code):
            return Lifecycle("failed", code)
        case Cancel(cause=cause):
            return Lifecycle("cancelled", cause)
