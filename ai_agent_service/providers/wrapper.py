"""Share what wrappers of a provider pass on."""

from ai_agent_service.providers.base import Provider


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
