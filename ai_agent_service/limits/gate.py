"""Refuse requests of a caller that is over its limit before their bodies are read."""

from ai_agent_service.auth.principal import Limits, Principal
from ai_agent_service.limits.limiter import InProcessLimiter
from ai_agent_service.limits.rate_limit import AdmissionRequest, Subject, list_subjects


class RequestGate:
    """Counts each request of a key, or of a verified user behind it, in this process, also those
    that turn out to be invalid.

    What a run may use is decided later, by the Limiter, which knows its tokens and counts for all
    processes.
    """

    def __init__(self) -> None:
        self._limiter = InProcessLimiter()

    async def charge(self, caller: Principal) -> None:
        """Count a request; raises RateLimitError."""
        if not (caller.key.limits or caller.key.user_limits):
            return
        user = None if caller.user is None else caller.user.user_id
        subjects = tuple(
            Subject(subject.name, subject.whose, Limits(requests=subject.limits.requests))
            for subject in list_subjects(caller, user or "")
            if subject.limits.requests is not None and (subject.whose == "key" or user is not None)
        )
        if subjects:
            await self._limiter.admit_request(AdmissionRequest(subjects, "", 0, 0.0))
