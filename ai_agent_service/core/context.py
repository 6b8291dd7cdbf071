"""Who a run is for, and until when: what travels with it through agents and tools."""

import time
from collections.abc import Callable

import msgspec

LOCAL_TENANT = "local"
"""Whose the conversations are of callers who need no key."""

ANONYMOUS = "anonymous"
"""The user where none is named."""

OnProgress = Callable[[float, float | None, str], None]
"""Takes a progress, the total or None, and a message; may be called from any thread."""


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """One run's circumstances; a tool gets it by naming a parameter of this type.

    `key_id` says who asked, `tenant` and `user` whose run it is, `session` which conversation
    (None: none was named), `agent_version` what the agent is at the time. `deadline` is a reading
    of `time.monotonic()` in seconds. `task` names what is asked for beside a chat, such as its
    title. `on_progress` is set for the time of a tool call. `caller` is the key with the verified
    user behind it, so that one caller's failures are not another's.
    """

    run_id: str
    agent_id: str
    deadline: float
    request_id: str = ""
    key_id: str = "none"
    tenant: str = LOCAL_TENANT
    user: str = ANONYMOUS
    session: str | None = None
    task: str | None = None
    agent_version: str = ""
    caller: str = ""
    on_progress: OnProgress | None = None

    def report_progress(
        self, progress: float, total: float | None = None, message: str = ""
    ) -> None:
        """Tells those who watch the run how far the tool is that was given this context."""
        if self.on_progress is not None:
            self.on_progress(progress, total, message)

    @property
    def log_fields(self) -> dict[str, str]:
        """Which run it is, of which agent and version: for the log."""
        return {
            "run_id": self.run_id,
            "agent_id": self.agent_id,
            "agent_version": self.agent_version,
        }

    @property
    def audit_fields(self) -> dict[str, str]:
        """Which run it is, of which agent, and who asked: for the audit log."""
        return {
            "agent_id": self.agent_id,
            "agent_version": self.agent_version,
            "key_id": self.key_id,
            "tenant": self.tenant,
            "user": self.user,
            "run_id": self.run_id,
            **({} if self.task is None else {"task": self.task}),
        }

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()
