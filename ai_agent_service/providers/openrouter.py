"""Ask OpenRouter for chat completions with their cost."""

from collections.abc import Mapping
from typing import ClassVar, Self

from ai_agent_service.config.addresses import build_address_hint, join_path
from ai_agent_service.providers.base import ProviderSetup
from ai_agent_service.providers.chat_wire import Profile
from ai_agent_service.providers.openai_compatible import OpenAICompatible


class OpenRouter(OpenAICompatible):
    """OpenRouter's API, which reports usage with its cost in US dollars, without being asked.

    Other servers at OPENROUTER_BASE_URL report it where `stream_options` asks for it; OpenRouter
    ignores that (openrouter.ai/docs/use-cases/usage-accounting).
    """

    name: ClassVar[str] = "openrouter"
    profile: ClassVar[Profile] = Profile(reasoning_object=True)
    has_responses: ClassVar[bool] = False
    title: str = ""

    @classmethod
    def from_setup(cls, setup: ProviderSetup) -> Self:
        """Return OpenRouter with OPENROUTER_API_KEY."""
        settings = setup.settings
        provider = cls(
            setup.http,
            base_url=settings.openrouter_base_url,
            api_key=settings.openrouter_api_key,
            default_model=settings.openrouter_default_model,
            default_model_variable="OPENROUTER_DEFAULT_MODEL",
            address_hint=build_address_hint("OPENROUTER_BASE_URL", settings.openrouter_base_url),
            model_list=settings.openrouter_model_list,
            missing=() if settings.openrouter_api_key else ("OPENROUTER_API_KEY",),
        )
        provider.title = settings.service_name
        return provider

    def ping_url(self) -> str:
        """Return the address of the key's data; the list of models is long and needs no key."""
        return join_path(self.base_url, "/key")

    def headers(self) -> Mapping[str, str]:
        """Return the key, and the name for OpenRouter's statistics."""
        return {**super().headers(), "X-Title": self.title}
