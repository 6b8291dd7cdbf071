"""Share what wrappers of a provider pass on."""

from collections.abc import AsyncGenerator

import msgspec

from ai_agent_service.config.agent_definition import ApiName
from ai_agent_service.providers.base import ModelEvent, ModelRequest, Provider


class WrappedProvider:
    """`provider`, to which a subclass adds `stream`."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    @property
    def name(self) -> str:
        """The provider's."""
        return self._provider.name

    @property
    def missing(self) -> tuple[str, ...]:
        """The provider's."""
        return self._provider.missing

    @property
    def model_list(self) -> tuple[str, ...]:
        """The provider's."""
        return self._provider.model_list

    async def default_model(self) -> str:
        """The provider's."""
        return await self._provider.default_model()


class ApiBoundProvider(WrappedProvider):
    """`provider`, asked through the API that an agent wants."""

    def __init__(self, provider: Provider, api: ApiName) -> None:
        super().__init__(provider)
        self._api = api

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ApiBoundProvider) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Return the answer's events; see Provider."""
        return self._provider.stream(msgspec.structs.replace(request, api=self._api))

    @property
    def _key(self) -> tuple[Provider, ApiName]:
        return (self._provider, self._api)
