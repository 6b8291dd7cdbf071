"""Ask Azure OpenAI, with a deployment's name as the model and its own header for the key."""

from collections.abc import Mapping
from typing import ClassVar, Self
from urllib.parse import quote

from ai_agent_service.config.addresses import parse_azure_endpoint
from ai_agent_service.providers.api_choice import Api
from ai_agent_service.providers.base import ProviderSetup
from ai_agent_service.providers.chat_wire import Profile
from ai_agent_service.providers.openai_compatible import OpenAICompatible

FIRST_RESPONSES_VERSION = "2025-03-01-preview"
"""The first dated API version with the Responses API."""


class AzureOpenAI(OpenAICompatible):
    """Azure OpenAI's v1 API, or its dated API when AZURE_OPENAI_API_VERSION holds a date.

    Addresses as in Azure's reference: `/openai/v1/chat/completions` and `/openai/v1/responses`;
    `/openai/deployments/{model}/chat/completions?api-version=2024-10-21` and
    `/openai/responses?api-version=2025-04-01-preview`.
    """

    name: ClassVar[str] = "azure_openai"
    profile: ClassVar[Profile] = Profile(null_content=True)
    api_version: str | None = None

    @classmethod
    def from_setup(cls, setup: ProviderSetup) -> Self:
        """Return the resource at AZURE_OPENAI_ENDPOINT; the deployment and the API version in the
        address are defaults."""
        settings = setup.settings
        needed = {
            "AZURE_OPENAI_API_KEY": settings.azure_openai_api_key,
            "AZURE_OPENAI_ENDPOINT": settings.azure_openai_endpoint,
        }
        endpoint = parse_azure_endpoint(settings.azure_openai_endpoint or "")
        provider = cls(
            setup.http,
            base_url=endpoint.base_url,
            api_key=settings.azure_openai_api_key,
            default_model=settings.azure_openai_default_model or endpoint.deployment,
            default_model_variable="AZURE_OPENAI_DEFAULT_MODEL",
            address_hint="Check AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_VERSION.",
            model_list=settings.azure_openai_model_list,
            missing=tuple(name for name, value in needed.items() if not value),
        )
        provider.api_version = settings.azure_openai_api_version or endpoint.api_version
        return provider

    def url(self, model: str) -> str:
        """Return the address of requests for the deployment `model`."""
        if version := self._dated_version:
            deployment = f"{self.base_url}/openai/deployments/{quote(model, safe='')}"
            return f"{deployment}/chat/completions?api-version={quote(version)}"
        return f"{self.base_url}/openai/v1/chat/completions{self._query}"

    def responses_url(self) -> str:
        """Return the address of the Responses API, in which the deployment is the model."""
        if version := self._dated_version:
            return f"{self.base_url}/openai/responses?api-version={quote(version)}"
        return f"{self.base_url}/openai/v1/responses{self._query}"

    def default_api(self) -> Api:
        """Return the API of the resource; older API versions have chat completions only."""
        version = self._dated_version
        return (
            "chat_completions"
            if version and version < FIRST_RESPONSES_VERSION
            else super().default_api()
        )

    def ping_url(self) -> str:
        """Return the address of the list of models, in the form of the API that is used."""
        if version := self._dated_version:
            return f"{self.base_url}/openai/models?api-version={quote(version)}"
        return f"{self.base_url}/openai/v1/models{self._query}"

    @property
    def _dated_version(self) -> str | None:
        version = self.api_version
        return version if version and version[0].isdigit() else None

    @property
    def _query(self) -> str:
        return (
            f"?api-version={quote(self.api_version)}"
            if self.api_version and self.api_version != "v1"
            else ""
        )

    def headers(self) -> Mapping[str, str]:
        """Return Azure's header for the key."""
        return {"api-key": self.api_key}
