"""Write the access log: one line for each request."""

import hashlib
import logging
from typing import Any

from ai_agent_service.observability.records import RequestReport, RunReport

logger = logging.getLogger("access")

DEBUG_ROUTES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""Routes that monitoring requests all the time, which are logged at DEBUG."""

HASH_DIGITS = 12
"""Hexadecimal digits that stand for a user or a session."""


class AccessLog:
    """Logs requests, without anything that was said. Names of users and sessions are hashed with
    `secret`."""

    def __init__(self, secret: str) -> None:
        self._key = hashlib.sha256(b"access log\0" + secret.encode()).digest()

    def write(self, report: RequestReport) -> None:
        """Write the line of a request; fields without a value are left out."""
        level = logging.DEBUG if report.route in DEBUG_ROUTES else logging.INFO
        if not logger.isEnabledFor(level):
            return
        first_byte = report.first_byte_seconds
        fields: dict[str, Any] = {
            "method": report.method,
            "route": report.route,
            "status": report.status,
            "seconds": round(report.seconds, 4),
            "client": report.client,
            "first_byte_seconds": None if first_byte is None else round(first_byte, 4),
            "error": report.error or None,
        }
        if report.run is not None:
            fields |= self._describe_run(report.run)
        extra = {name: value for name, value in fields.items() if value is not None}
        logger.log(level, "request", extra=extra)

    def _describe_run(self, run: RunReport) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "agent_id": run.agent_id,
            "agent_version": run.agent_version or None,
            "key_id": run.key_id,
            "user": self.hash_names(run.tenant, run.user),
            "session": None
            if run.session is None
            else self.hash_names(run.tenant, run.user, run.session),
            "run_id": run.run_id,
            "task": run.task,
            "outcome": run.outcome,
            "streamed": run.is_streamed,
            "provider": run.provider,
            "model": run.steps[-1].model if run.steps else None,
            "steps": run.step_count,
            "repeated": run.is_repeated or None,
            "without_memory": run.is_without_memory or None,
        }
        if (usage := run.usage) is not None:
            fields |= {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "cached_tokens": usage.cached_tokens or None,
                "reasoning_tokens": usage.reasoning_tokens or None,
                "cost": usage.cost,
            }
        fields["provider_seconds"] = round(run.provider_seconds, 4)
        if run.tools:
            fields |= {
                "tool_calls": len(run.tools),
                "tool_errors": sum(use.outcome != "success" for use in run.tools),
                "tool_seconds": round(run.tool_seconds, 4),
            }
        return fields

    def hash_names(self, *names: str) -> str:
        """Return a keyed hash of `names`, which is always the same for the same names."""
        text = "\0".join(names).encode(errors="surrogatepass")
        return hashlib.blake2b(text, digest_size=HASH_DIGITS // 2, key=self._key).hexdigest()
