"""Asks other providers when an agent's own fails before its answer has begun."""

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
        """What log lines and `check` call it, such as `openrouter/openai/gpt-4.1`."""
        return f"{self.provider.name}/{self.model}" if self.model else self.provider.name

    async def resolve_model(self) -> str:
        """The model to ask for; raises UpstreamError, ProviderNotConfiguredError among them."""
        if self.provider.missing:
            raise ProviderNotConfiguredError(
                f"{' and '.join(self.provider.missing)} must be set for {self.provider.name}."
            )
        return self.model or await self.provider.default_model()


class FallbackProvider:
    """The provider `own` of an agent, and `others` that are asked in their order when it fails.

    They are asked the same, within the same deadline, before the first event of an answer only, and
    for errors of the provider only: what the request is wrong in, a conversation that is too long
    (the loop shortens it) and the run's deadline go to the caller. A fallback that does not take a
    request that the agent's own would is passed over. If all fail, the error of the first that
    could be asked is raised, for that is the provider which the caller's agent is meant to have;
    the log has the others.
    """

    def __init__(self, agent_id: str, own: Provider, others: tuple[FailoverCandidate, ...]) -> None:
        self.own = own
        self.others = others
        self._agent_id = agent_id

    @property
    def name(self) -> str:
        """The name of the agent's own."""
        return self.own.name

    @property
    def missing(self) -> tuple[str, ...]:
        """What the agent's own needs, unless another one can answer."""
        return self.own.missing if all(other.provider.missing for other in self.others) else ()

    @property
    def model_list(self) -> tuple[str, ...]:
        """Those of the agent's own."""
        return self.own.model_list

    async def default_model(self) -> str:
        """That of the agent's own; empty where it cannot tell one and another can, as it is asked
        for again when it is needed."""
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
        """The answer of the first that begins one; see Provider. Its last event names who answered
        if it is not the agent's own."""
        errors: list[UpstreamError] = []
        failed: list[str] = []
        candidates = (FailoverCandidate(self.own, request.model), *self.others)
        for place, candidate in enumerate(candidates):
            begun = False
            try:
                question = await _build_request(candidate, request, self.own)
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
                if (
                    begun
                    or isinstance(error, ContextTooLongError)
                    or (isinstance(error, InvalidRequestError) and not place)
                ):
                    raise
                if isinstance(error, UpstreamError):
                    errors.append(error)
                failed.append(f"{candidate.label}: {error.code}")
                if time.monotonic() >= request.deadline:
                    break
                if place + 1 < len(candidates):
                    cause = (
                        error.message if isinstance(error, UpstreamError) else ""
                    )  # the other may repeat what the user said
                    extra = {
                        "from": candidate.label,
                        "to": candidates[place + 1].label,
                        "code": error.code,
                        "cause": cause,
                    }
                    logger.warning("provider.fallback", extra={"agent_id": self._agent_id, **extra})
        logger.warning(
            "provider.fallbacks_failed", extra={"agent_id": self._agent_id, "failed": failed}
        )
        raise next(
            (error for error in errors if not isinstance(error, ProviderNotConfiguredError)),
            errors[0],
        )


async def _build_request(
    candidate: FailoverCandidate, request: ModelRequest, own: Provider
) -> ModelRequest:
    """`request` as it is put to `candidate`: what another provider's model thought is not for
    it."""
    model = await candidate.resolve_model()
    if candidate.provider.name == own.name:
        return request if model == request.model else msgspec.structs.replace(request, model=model)
    messages = tuple(
        msgspec.structs.replace(message, reasoning="") if message.reasoning else message
        for message in request.messages
    )
    return msgspec.structs.replace(request, model=model, messages=messages)
