"""Ask local models of Ollama through its native API, so that its options work."""

from collections.abc import AsyncGenerator
from typing import ClassVar, Self

from ai_agent_service.config.addresses import join_path
from ai_agent_service.core.errors import ProviderNotConfiguredError, ProviderProtocolError
from ai_agent_service.providers import ollama_wire
from ai_agent_service.providers.base import ModelEvent, ModelRequest, ProviderSetup
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.http_errors import HttpTarget

_HINT = "Check OLLAMA_BASE_URL."
_EMBEDDING_MODELS = ("embed", "minilm", "bge-")


class Ollama:
    """The Ollama server at OLLAMA_BASE_URL."""

    name: ClassVar[str] = "ollama"
    missing: tuple[str, ...] = ()

    def __init__(
        self,
        http: HttpClient,
        *,
        base_url: str,
        default_model: str | None = None,
        model_list: tuple[str, ...] = (),
    ) -> None:
        self.http = http
        self.base_url = base_url.rstrip("/")
        self.model_list = model_list
        self._default_model = default_model

    @classmethod
    def from_setup(cls, setup: ProviderSetup) -> Self:
        """Return the server of the settings."""
        settings = setup.settings
        return cls(
            setup.http,
            base_url=settings.ollama_base_url,
            default_model=settings.ollama_default_model,
            model_list=settings.ollama_model_list,
        )

    async def list_installed_models(self, *, timeout: float = 2.0) -> tuple[str, ...]:
        """Return the names of the installed chat models; raises UpstreamError."""
        target = HttpTarget(self.name, join_path(self.base_url, "/api/tags"), address_hint=_HINT)
        answer = await self.http.get_json(target, timeout=timeout)
        models = answer.get("models") if isinstance(answer, dict) else None
        if not isinstance(models, list):
            raise ProviderProtocolError(
                "ollama answered /api/tags with something that is not a list of models"
            )
        names = [
            model["name"]
            for model in models
            if isinstance(model, dict) and isinstance(model.get("name"), str)
        ]
        return tuple(
            name for name in names if not any(sign in name.lower() for sign in _EMBEDDING_MODELS)
        )

    async def ping(self, *, timeout: float) -> None:
        """See Pingable."""
        await self.list_installed_models(timeout=timeout)

    async def default_model(self) -> str:
        """Return OLLAMA_DEFAULT_MODEL, else the first installed model."""
        if not self._default_model:
            installed = await self.list_installed_models()
            if not installed:
                raise ProviderNotConfiguredError(
                    "No model is installed in Ollama: run `ollama pull qwen3`, or set"
                    " OLLAMA_DEFAULT_MODEL."
                )
            self._default_model = installed[0]
        return self._default_model

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield the answer as it comes; see Provider."""
        target = HttpTarget(
            self.name,
            join_path(self.base_url, "/api/chat"),
            request.http_headers,
            model=request.model,
            address_hint=_HINT,
        )
        return ollama_wire.stream(self.http, target, request)
