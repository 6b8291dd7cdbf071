"""Who a run is for, and until when: what travels with it through agents and tools."""

import time

import msgspec


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """One run's circumstances; a tool gets it by naming a parameter of this type.

    `tenant` and `user` say whose run it is, `session` which conversation (None: none was named). `deadline` is a reading of
    `time.monotonic()` in seconds.
    """

    run_id: str
    agent_id: str
    deadline: float
    request_id: str = ""
    tenant: str = "local"
    user: str = "anonymous"
    session: str | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()
