"""The runs in progress in this process, which equal requests may join."""

from ai_agent_service.runs.record import RunRecord


class LiveRuns:
    """Looks up the runs in progress in this process by their ids."""

    def __init__(self) -> None:
        self._records: dict[str, RunRecord] = {}

    def begin(self, run_id: str, record: RunRecord) -> None:
        """Let others follow the run until `end` is called."""
        self._records[run_id] = record

    def end(self, run_id: str) -> None:
        """Let nothing join the run any more; its followers get what there is, and its end."""
        self._records.pop(run_id).close()

    def is_live(self, run_id: str) -> bool:
        """Return whether the run is in progress."""
        return run_id in self._records

    def find(self, run_id: str) -> RunRecord | None:
        """Return the record of the run if it is in progress."""
        return self._records.get(run_id)
