"""The access log: one line for each request."""

import hashlib
import logging
from typing import Any

from ai_agent_service.observability.records import RequestReport, RunReport

logger = logging.getLogger("access")

DEBUG_ROUTES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""What is asked all the time by those that watch the service: told at DEBUG."""

HASH_DIGITS = 12
"""Hexadecimal digits that stand for a user or a session."""


class AccessLog:
    """Tells of requests. `secret` is what the names of users and sessions are hashed with: no line
    has them, nor anything that was said."""

    def __init__(self, secret: str) -> None:
        self._key = hashlib.sha256(b"access log\0" + secret.encode()).digest()

    def write(self, report: RequestReport) -> None:
        """Writes the line of a request."""
        level = logging.DEBUG if report.route in DEBUG_ROUTES else logging.INFO
        if not logger.isEnabledFor(level):
            return
        extra: dict[str, Any] = {
            "method": report.method,
            "route": report.route,
            "status": report.status,
            "seconds": round(report.seconds, 4),
            "client": report.client,
        }
        if report.first_byte_seconds is not None:
            extra["first_byte_seconds"] = round(report.first_byte_seconds, 4)
        if report.error:
            extra["error"] = report.error
        if report.run is not None:
            self._add_run(extra, report.run)
        logger.log(level, "request", extra=extra)

    def _add_run(self, extra: dict[str, Any], run: RunReport) -> None:
        extra["agent_id"] = run.agent_id
        if run.agent_version:
            extra["agent_version"] = run.agent_version
        extra["key_id"] = run.key_id
        extra["user"] = self.hash_names(run.tenant, run.user)
        if run.session is not None:
            extra["session"] = self.hash_names(run.tenant, run.user, run.session)
        extra["run_id"] = run.run_id
        if run.task is not None:
            extra["task"] = run.task
        extra["outcome"] = run.outcome
        extra["streamed"] = run.is_streamed
        extra["provider"] = run.provider
        if run.steps:
            extra["model"] = run.steps[-1].model
        extra["steps"] = run.step_count
        if run.is_repeated:
            extra["repeated"] = True
        if run.is_without_memory:
            extra["without_memory"] = True
        if (usage := run.usage) is not None:
            extra["prompt_tokens"] = usage.prompt_tokens
            extra["completion_tokens"] = usage.completion_tokens
            if usage.cached_tokens:
                extra["cached_tokens"] = usage.cached_tokens
            if usage.reasoning_tokens:
                extra["reasoning_tokens"] = usage.reasoning_tokens
            if usage.cost is not None:
                extra["cost"] = usage.cost
        extra["provider_seconds"] = round(run.provider_seconds, 4)
        if run.tools:
            extra["tool_calls"] = len(run.tools)
            extra["tool_errors"] = sum(use.outcome != "success" for use in run.tools)
            extra["tool_seconds"] = round(run.tool_seconds, 4)

    def hash_names(self, *names: str) -> str:
        """What stands for `names` in a line: a keyed hash, the same each time."""
        text = "\0".join(names).encode(errors="surrogatepass")
        return hashlib.blake2b(text, digest_size=HASH_DIGITS // 2, key=self._key).hexdigest()
