"""Ask the parts of the service whether they can be used, each within a deadline."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.auth.access import Access
from ai_agent_service.core.errors import (
    MemoryUnavailableError,
    ProviderRefusedError,
    ProviderTimeoutError,
    UpstreamError,
)
from ai_agent_service.core.redaction import redact_secrets
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.health.probes import DiskHealth, DiskProbe, Probe, collect_answers
from ai_agent_service.providers.base import Pingable, Provider
from ai_agent_service.providers.breaker import BreakerState
from ai_agent_service.runtime.service import Service
from ai_agent_service.storage.database import Database, DatabaseError, DatabaseTimeoutError
from ai_agent_service.storage.opening import build_database_url
from ai_agent_service.storage.replication import DatabaseState, build_lag_query, build_state_query

logger = logging.getLogger(__name__)

PING_SECONDS = 1.5
"""The time in which a part must answer; later it is reported as `timeout`."""

READY_SECONDS = 0.5
"""The same for the readiness probe, for which Kubernetes allows a second by default."""

CACHE_SECONDS = 2.0
AGENTS_CACHE_SECONDS = 1.0
PROVIDERS_CACHE_SECONDS = 10.0


class DatabaseAnswer(msgspec.Struct):
    """The state of the database and its replica; `error` and `replica_error` are why it is
    unknown."""

    round_trip_ms: float | None = None
    revision: str | None = None
    error: str | None = None
    replica_lag_seconds: float | None = None
    replica_error: str | None = None
    is_late: bool = False
    """Whether the database did not answer in time."""


class BreakerHealth(msgspec.Struct):
    """The circuit breaker of a model: `open` stops requests for another `seconds_left`;
    `last_error` is a code."""

    model: str
    state: BreakerState
    failures: int
    last_error: str | None
    seconds_left: float | None
    openings: int


class ProviderHealth(msgspec.Struct):
    """A provider: whether it can be used, else why not; `unknown` where asking would cost money.
    `breakers` are those of the models that were asked since the start."""

    state: Literal["ready", "down", "timeout", "not_configured", "unknown"]
    error: str | None
    round_trip_ms: float | None
    breakers: list[BreakerHealth]


class AgentHealth(msgspec.Struct):
    """An agent: whether it can answer, else what prevents it; `api` is as in `/agents`."""

    state: Literal["ready", "not_ready", "timeout"]
    problem: str | None
    api: str | None = None


class HealthChecks:
    """The checks of `service` and `access`, which run in `tasks`. Answers contain none of the
    service's secrets."""

    def __init__(self, service: Service, access: Access, tasks: Tasks) -> None:
        self._service = service
        self._access = access
        self._tasks = tasks
        self._providers: dict[str, Probe[ProviderHealth]] = {}
        self._agents: dict[str, Probe[AgentHealth]] = {}
        self._disks = {
            str(path): Probe(DiskProbe(path).measure_usage, tasks, kept_seconds=CACHE_SECONDS)
            for path in _find_written_folders(service, access)
        }
        self._database = Probe(self._ping_database, tasks, kept_seconds=CACHE_SECONDS)

    @property
    def target_database(self) -> Database | None:
        """The database of conversations, which may have been opened since the start, else that of
        keys; None without a database."""
        memories = self._service.memories
        return self._access.database if memories is None else memories.database

    async def find_problem(self) -> str | None:
        """Return why nothing can be served; None if something can, or nothing is known in time."""
        database = self.target_database
        if database is not None and database.is_starting:
            return "The database is being prepared."
        if (problem := self._access.problem) is not None:
            return problem
        agents = await self.check_agents(READY_SECONDS)
        if all(agent.state == "not_ready" for agent in agents.values()):
            return "No agent can answer."
        return None

    async def check_agents(self, within: float = PING_SECONDS) -> dict[str, AgentHealth]:
        """Return the state of each agent by its id."""
        probes = {}
        for agent_id in [agent.agent_id for agent in self._service.catalog]:
            ask = partial(self._ask_agent, agent_id)
            probe = Probe(ask, self._tasks, kept_seconds=AGENTS_CACHE_SECONDS)
            probes[agent_id] = self._agents.setdefault(agent_id, probe)
        late = AgentHealth("timeout", "It did not say in time whether it can.")
        return await collect_answers(probes, within, late)

    async def check_providers(self) -> dict[str, ProviderHealth]:
        """Return the state of each provider in use by its name."""
        probes = {}
        for name in sorted(self._service.providers):
            ask = partial(self._ask_provider, name)
            probe = Probe(ask, self._tasks, kept_seconds=PROVIDERS_CACHE_SECONDS)
            probes[name] = self._providers.setdefault(name, probe)
        late = ProviderHealth("timeout", _describe_timeout(), None, [])
        answers = await collect_answers(probes, PING_SECONDS, late)
        breakers = self._service.breakers.list_statuses()
        return {
            name: msgspec.structs.replace(
                answer,
                breakers=[
                    msgspec.convert(each, BreakerHealth, from_attributes=True)
                    for each in breakers
                    if each.provider == name
                ],
            )
            for name, answer in answers.items()
        }

    async def check_database(self) -> DatabaseAnswer | None:
        """Return the state of the database; None without one."""
        if self.target_database is None:
            return None
        return await self._database.wait_for_answer(PING_SECONDS) or DatabaseAnswer(
            error=_describe_timeout(), is_late=True
        )

    async def check_disks(self) -> dict[str, DiskHealth]:
        """Return the free space of each folder that is written to."""
        late = DiskHealth("timeout", None, None, "It did not answer in time.")
        return await collect_answers(self._disks, PING_SECONDS, late)

    async def _ask_agent(self, agent_id: str) -> AgentHealth:
        agents = {agent.agent_id: agent for agent in self._service.catalog}
        agent = agents.get(agent_id)
        if agent is None:
            return AgentHealth("ready", None)
        if (problem := self._redact(await _find_problem(agent))) is not None:
            return AgentHealth("not_ready", problem)
        return AgentHealth("ready", None, await self._describe_api(agent))

    async def _describe_api(self, agent: BaseAgent) -> str | None:
        try:
            return self._service.describe_api(agent, await agent.model())
        # an agent type or a provider may be a plug-in and raise anything
        except Exception as error:  # noqa: BLE001
            _report_failure(agent.agent_id, error)
            return None

    async def _ask_provider(self, name: str) -> ProviderHealth:
        provider = self._service.providers.get(name)
        if provider is None:
            return ProviderHealth("unknown", None, None, [])
        answer = await ping_provider(provider)
        answer.error = self._redact(answer.error)
        return answer

    async def _ping_database(self) -> DatabaseAnswer:
        database = self.target_database
        assert database is not None
        began = time.monotonic()
        query = build_state_query(with_position=database.replica is not None)
        try:
            found = await database.ping(query, timeout=PING_SECONDS)
        except DatabaseError as error:
            is_late = isinstance(error, DatabaseTimeoutError)
            return DatabaseAnswer(error=self._redact(str(error)), is_late=is_late)
        # a server that is not quite PostgreSQL may lack one of the functions
        except Exception as error:  # noqa: BLE001
            return DatabaseAnswer(error=_report_failure("database", error))
        answer = DatabaseAnswer(_measure_milliseconds(began), found.revision)
        try:
            answer.replica_lag_seconds = await _measure_lag(database, found)
        except MemoryUnavailableError:
            answer.replica_error = self._redact(database.replica_problem)
        except Exception as error:  # noqa: BLE001 - as above
            answer.replica_error = _report_failure("replica", error)
        return answer

    def _redact(self, text: str | None) -> str | None:
        return None if text is None else redact_secrets(text, self._service.secrets)


@asynccontextmanager
async def open_checks(service: Service, access: Access) -> AsyncGenerator[HealthChecks, None]:
    """Yield the checks of a service, and cancel those that still run at the end."""
    async with Tasks(grace=0.1) as tasks:
        yield HealthChecks(service, access, tasks)


async def ping_provider(provider: Provider) -> ProviderHealth:
    """Return whether `provider` can be used now. The error may contain its credentials."""
    if provider.missing:
        problem = f"{' and '.join(provider.missing)} must be set."
        return ProviderHealth("not_configured", problem, None, [])
    if not isinstance(provider, Pingable):
        return ProviderHealth("unknown", "It has no ping.", None, [])
    began = time.monotonic()
    try:
        await provider.ping(timeout=PING_SECONDS)
    except ProviderTimeoutError as error:
        return ProviderHealth("timeout", error.message, None, [])
    except UpstreamError as error:
        # A server may answer models' requests and have no list of them.
        status = error.upstream.status if error.upstream else None
        is_there = error.code == "provider_model_not_found" or status in (405, 501)
        said = error.detail if isinstance(error, ProviderRefusedError) else error.message
        return ProviderHealth("unknown" if is_there else "down", said, None, [])
    except Exception as error:  # noqa: BLE001 - a provider may be a plug-in and raise anything
        return ProviderHealth("down", _report_failure(provider.name, error), None, [])
    return ProviderHealth("ready", None, _measure_milliseconds(began), [])


async def _find_problem(agent: BaseAgent) -> str | None:
    try:
        return await agent.find_problem()
    except Exception as error:  # noqa: BLE001 - an agent type may be a plug-in and raise anything
        return _report_failure(agent.agent_id, error)


async def _measure_lag(database: Database, found: DatabaseState) -> float | None:
    """Return how many seconds the replica is behind; None without one. Raises
    MemoryUnavailableError."""
    if database.replica is None or found.position is None:
        return None
    return await database.read_replica(build_lag_query(found.position), timeout=PING_SECONDS)


def _find_written_folders(service: Service, access: Access) -> list[Path]:
    settings, database = service.settings, access.database
    paths = []
    if database is not None and database.kind == "sqlite":
        paths.append(build_database_url(settings).path)
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
