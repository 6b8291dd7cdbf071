"""Ask other providers when an agent's own fails before its answer has begun."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from ai_agent_service.core.errors import (
    ContextTooLongError,
    InvalidRequestError,
    ProviderNotConfiguredError,
    ProviderProtocolError,
    UpstreamError,
)
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest, Provider

logger = logging.getLogger(__name__)


class FailoverCandidate(msgspec.Struct, frozen=True):
    """A provider to fall back to, and its model (empty: its default)."""

    provider: Provider
    model: str = ""

    @property
    def label(self) -> str:
        """The name in log lines and in `check`, such as `openrouter/openai/gpt-4.1`."""
        return f"{self.provider.name}/{self.model}" if self.model else self.provider.name

    async def resolve_model(self) -> str:
        """Return the model to ask for; raises UpstreamError, such as ProviderNotConfiguredError."""
        if self.provider.missing:
            raise ProviderNotConfiguredError(
                f"{' and '.join(self.provider.missing)} must be set for {self.provider.name}."
            )
        return self.model or await self.provider.default_model()


class FallbackProvider:
    """The provider `own` of an agent, and `others` that get the same request when it fails.

    They are asked in their order and within the same deadline, only before the first event of an
    answer, and only for errors of the provider. An invalid request, a conversation that is too long
    (the loop shortens it) and the run's deadline are the caller's errors. A fallback that rejects
    the request is skipped. If all fail, the error of the first that could be asked is raised, since
    that is the provider which the agent is meant to have; the log has the others.
    """

    def __init__(self, agent_id: str, own: Provider, others: tuple[FailoverCandidate, ...]) -> None:
        self.own = own
        self.others = others
        self._agent_id = agent_id

    @property
    def name(self) -> str:
        """The name of the agent's own provider."""
        return self.own.name

    @property
    def missing(self) -> tuple[str, ...]:
        """What the agent's own provider needs, unless another one can answer."""
        return self.own.missing if all(other.provider.missing for other in self.others) else ()

    @property
    def model_list(self) -> tuple[str, ...]:
        """The models of the agent's own provider."""
        return self.own.model_list

    async def default_model(self) -> str:
        """Return the agent's own default model; empty if only another provider has one, since
        `stream` asks again."""
        try:
            return await self.own.default_model()
        except UpstreamError:
            for other in self.others:
                try:
                    await other.resolve_model()
                except UpstreamError:
                    continue
                return ""
            raise

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield the answer of the first that begins one; see Provider. The last event names the
        provider if it is not the agent's own."""
        errors: list[UpstreamError] = []
        failed: list[str] = []
        candidates = (FailoverCandidate(self.own, request.model), *self.others)
        for place, candidate in enumerate(candidates):
            begun = False
            try:
                question = await _build_request(candidate, request)
                async with aclosing(candidate.provider.stream(question)) as events:
                    async for event in events:
                        begun = True
                        if place and isinstance(event, ModelFinished):
                            event = msgspec.structs.replace(
                                event, model=question.model, provider=candidate.provider.name
                            )
                        yield event
                if begun:
                    return
                raise ProviderProtocolError(
                    f"The answer of {candidate.provider.name} has nothing in it."
                )
            except (UpstreamError, InvalidRequestError) as error:
                if begun or isinstance(error, ContextTooLongError):
                    raise
                if isinstance(error, UpstreamError):
                    errors.append(error)
                elif not place:
                    raise
                failed.append(f"{candidate.label}: {error.code}")
                if time.monotonic() >= request.deadline:
                    break
                if place + 1 < len(candidates):
                    extra = {
                        "agent_id": self._agent_id,
                        "from": candidate.label,
                        "to": candidates[place + 1].label,
                        "code": error.code,
                        # An InvalidRequestError may repeat what the user said.
                        "cause": error.message if isinstance(error, UpstreamError) else "",
                    }
                    logger.warning("provider.fallback", extra=extra)
        all_failed = {"agent_id": self._agent_id, "failed": failed}
        logger.warning("provider.fallbacks_failed", extra=all_failed)
        raise next(
            (error for error in errors if not isinstance(error, ProviderNotConfiguredError)),
            errors[0],
        )


async def _build_request(candidate: FailoverCandidate, request: ModelRequest) -> ModelRequest:
    """Return `request` for `candidate`."""
    model = await candidate.resolve_model()
    return request if model == request.model else msgspec.structs.replace(request, model=model)
