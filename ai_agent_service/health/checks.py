"""Asks the parts of the service whether they can be used, each within a deadline and once for all
who want to know."""

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.auth.access import Access
from ai_agent_service.core.errors import MemoryUnavailableError, ProviderTimeoutError, UpstreamError
from ai_agent_service.core.redaction import redact_secrets
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.health.probes import DiskAnswer, Probe, _collect_answers, _DiskProbe
from ai_agent_service.providers.base import Pingable, Provider
from ai_agent_service.runtime.service import Service
from ai_agent_service.storage.database import Database, DatabaseError, DatabaseTimeoutError
from ai_agent_service.storage.opening import build_database_url
from ai_agent_service.storage.replication import DatabaseState, build_lag_query, build_state_query

logger = logging.getLogger(__name__)

PING_SECONDS = 1.5
"""What a part may take to answer; then it is reported as `timeout`."""

READY_SECONDS = 0.5
"""As much where it is asked whether requests should be sent here, which Kubernetes gives a second
by default."""

CACHE_SECONDS = 2.0
AGENTS_CACHE_SECONDS = 1.0
PROVIDERS_CACHE_SECONDS = 10.0

LOW_DISK_BYTES = 256 * 1024 * 1024
MAX_LAG_SECONDS = 60.0
"""How far a replica may be behind."""


class DatabaseAnswer(msgspec.Struct, frozen=True):
    """What the database says, and its replica; `error` and `replica_error` are why they say
    nothing."""

    round_trip_ms: float | None = None
    revision: str | None = None
    error: str | None = None
    replica_lag_seconds: float | None = None
    replica_error: str | None = None
    is_late: bool = False
    """Whether it did not say anything in time."""


class ProviderAnswer(msgspec.Struct, frozen=True):
    """Whether a provider answers; `unknown` where it cannot be asked without cost."""

    state: Literal["ready", "down", "timeout", "not_configured", "unknown"]
    error: str | None = None
    round_trip_ms: float | None = None


class AgentAnswer(msgspec.Struct, frozen=True):
    """What keeps an agent from answering, if anything does."""

    problem: str | None


class HealthChecks:
    """The parts of `service` and `access`; questions are put by `tasks`. The service's secrets are
    taken out of what parts say."""

    def __init__(self, service: Service, access: Access, tasks: Tasks) -> None:
        self._service = service
        self._access = access
        self._tasks = tasks
        self._providers: dict[str, Probe[ProviderAnswer]] = {}
        self._agents: dict[str, Probe[AgentAnswer]] = {}
        self._disks = {
            path: Probe(_DiskProbe(path).measure_usage, tasks, kept_seconds=CACHE_SECONDS)
            for path in _find_written_folders(service, access)
        }
        self._database = Probe(self._ping_database, tasks, kept_seconds=CACHE_SECONDS)

    @property
    def target_database(self) -> Database | None:
        """The database of conversations, which may have been opened since the start, or that of
        keys; None where there is none."""
        memories = self._service.memories
        return self._access.database if memories is None else memories.database

    async def find_problem(self) -> str | None:
        """Why nothing can be served, in a sentence; None where something can, or that cannot be
        told in a moment."""
        if (problem := self._access.problem) is not None:
            return problem
        answers = (await self.check_agents(READY_SECONDS)).values()
        if all(answer is not None and answer.problem is not None for answer in answers):
            return "No agent can answer."
        return None

    async def check_agents(self, within: float = PING_SECONDS) -> dict[str, AgentAnswer | None]:
        """Each agent, by its id; None for one that did not tell in time."""
        for agent in self._service.catalog:
            if agent.agent_id not in self._agents:
                self._agents[agent.agent_id] = Probe(
                    self._build_agent_check(agent.agent_id),
                    self._tasks,
                    kept_seconds=AGENTS_CACHE_SECONDS,
                )
        return await _collect_answers(
            {agent.agent_id: self._agents[agent.agent_id] for agent in self._service.catalog},
            within,
        )

    async def check_providers(self) -> dict[str, ProviderAnswer]:
        """Each provider that is used, by its name."""
        used = self._service.providers
        for name in used:
            if name not in self._providers:
                self._providers[name] = Probe(
                    self._build_provider_check(name),
                    self._tasks,
                    kept_seconds=PROVIDERS_CACHE_SECONDS,
                )
        answers = await _collect_answers(
            {name: self._providers[name] for name in sorted(used)}, PING_SECONDS
        )
        return {
            name: answer or ProviderAnswer("timeout", _describe_timeout())
            for name, answer in answers.items()
        }

    async def check_database(self) -> DatabaseAnswer:
        """What the database says; only where there is one."""
        return await self._database.wait_for_answer(PING_SECONDS) or DatabaseAnswer(
            error=_describe_timeout(), is_late=True
        )

    async def check_disks(self) -> dict[Path, DiskAnswer | None]:
        """How much room there is, by the folders that are written to; None for one that did not
        tell in time."""
        return await _collect_answers(self._disks, PING_SECONDS)

    def _build_agent_check(self, agent_id: str) -> Callable[[], Awaitable[AgentAnswer]]:
        async def ask() -> AgentAnswer:
            agent = next(
                (agent for agent in self._service.catalog if agent.agent_id == agent_id), None
            )
            return AgentAnswer(None if agent is None else self._redact(await _find_problem(agent)))

        return ask

    def _build_provider_check(self, name: str) -> Callable[[], Awaitable[ProviderAnswer]]:
        async def ask() -> ProviderAnswer:
            provider = self._service.providers.get(name)
            answer = (
                ProviderAnswer("unknown") if provider is None else await _ping_provider(provider)
            )
            return msgspec.structs.replace(answer, error=self._redact(answer.error))

        return ask

    async def _ping_database(self) -> DatabaseAnswer:
        database = self.target_database
        assert database is not None
        began = time.monotonic()
        try:
            found = await database.ping(
                build_state_query(with_position=database.replica is not None), timeout=PING_SECONDS
            )
        except DatabaseError as error:
            return DatabaseAnswer(
                error=self._redact(str(error)), is_late=isinstance(error, DatabaseTimeoutError)
            )
        # a server that is not quite PostgreSQL may know no such function
        except Exception as error:  # noqa: BLE001
            return DatabaseAnswer(error=_report_failure("database", error))
        taken = _measure_milliseconds(began)
        try:
            behind = await _measure_lag(database, found)
        except MemoryUnavailableError:
            return DatabaseAnswer(
                taken, found.revision, replica_error=self._redact(database.replica_problem)
            )
        except Exception as error:  # noqa: BLE001 - as above
            return DatabaseAnswer(
                taken, found.revision, replica_error=_report_failure("replica", error)
            )
        return DatabaseAnswer(taken, found.revision, replica_lag_seconds=behind)

    def _redact(self, said: str | None) -> str | None:
        return None if said is None else redact_secrets(said, self._service.secrets)


@asynccontextmanager
async def open_checks(service: Service, access: Access) -> AsyncGenerator[HealthChecks, None]:
    """The checks of a service; what is still asked at the end is left."""
    async with Tasks(grace=0.1) as tasks:
        yield HealthChecks(service, access, tasks)


async def _ping_provider(provider: Provider) -> ProviderAnswer:
    if provider.missing:
        return ProviderAnswer("not_configured", f"{' and '.join(provider.missing)} must be set.")
    if not isinstance(provider, Pingable):
        return ProviderAnswer("unknown", "It has no ping.")
    began = time.monotonic()
    try:
        await provider.ping(timeout=PING_SECONDS)
    except UpstreamError as error:
        # A server may well answer questions to models and list none.
        if isinstance(error, ProviderTimeoutError):
            return ProviderAnswer("timeout", error.message)
        return ProviderAnswer(
            "unknown" if error.code == "provider_model_not_found" else "down", error.message
        )
    except Exception as error:  # noqa: BLE001 - a provider may be a plug-in and raise anything
        return ProviderAnswer("down", _report_failure(provider.name, error))
    return ProviderAnswer("ready", None, _measure_milliseconds(began))


async def _find_problem(agent: BaseAgent) -> str | None:
    try:
        return await agent.find_problem()
    except Exception as error:  # noqa: BLE001 - an agent type may be a plug-in and raise anything
        return _report_failure(agent.agent_id, error)


async def _measure_lag(database: Database, found: DatabaseState) -> float | None:
    """How many seconds the replica is behind; None without one. Raises MemoryUnavailableError."""
    if database.replica is None or found.position is None:
        return None
    return await database.read_replica(build_lag_query(found.position), timeout=PING_SECONDS)


def _find_written_folders(service: Service, access: Access) -> list[Path]:
    """The folders that the service writes to."""
    settings, database = service.settings, access.database
    paths = (
        [build_database_url(settings).path]
        if database is not None and database.kind == "sqlite"
        else []
    )
    if settings.audit_log_file is not None:
        paths.append(settings.audit_log_file)
    return list(dict.fromkeys(path.absolute().parent for path in paths))


def _measure_milliseconds(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 2)


def _describe_timeout() -> str:
    return f"It did not answer within {PING_SECONDS:g} seconds."


def _report_failure(part: str, error: Exception) -> str:
    logger.warning("health.check_failed", extra={"part": part}, exc_info=error)
    return f"The check failed with {type(error).__name__}; the log says more."
