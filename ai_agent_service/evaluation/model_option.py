"""Finds the model that an option such as `--judge openai:gpt-4.1` names."""

import msgspec

from ai_agent_service.config.agent_definition import AUTO, PROVIDER_ALIASES
from ai_agent_service.config.json_files import suggest_name
from ai_agent_service.core.errors import ConfigError, Fault, UpstreamError
from ai_agent_service.providers.base import Provider
from ai_agent_service.runtime.service import Service


class Model(msgspec.Struct, frozen=True):
    """A model, and the provider that answers for it, with nothing around it: it has retries of its
    own and no breaker."""

    provider: Provider
    name: str

    @property
    def label(self) -> str:
        """As it may be given to `find_model` again, such as `ollama:qwen3:8b`."""
        return f"{self.provider.name}:{self.name}"


async def find_model(service: Service, written: str, option: str) -> Model:
    """What `written` names, `PROVIDER:MODEL` or `PROVIDER` for its default model; raises
    ConfigError, which names the `option`."""
    given, _, model = written.partition(":")
    name = service.auto_provider if given == AUTO else PROVIDER_ALIASES.get(given, given)
    provider = service.all_providers.get(name)
    if provider is None:
        raise _build_error(
            option,
            f"{given!r} is not a provider",
            suggest_name(given, [*service.all_providers, *PROVIDER_ALIASES, AUTO]),
        )
    if provider.missing:
        raise _build_error(
            option,
            f"{name} cannot be asked without {' and '.join(provider.missing)}",
            "Set it in the environment or in .env",
        )
    if not model:
        try:
            model = await provider.default_model()
        except UpstreamError as error:
            raise _build_error(
                option, error.message.rstrip("."), f"Name a model: {given}:MODEL"
            ) from None
    return Model(provider, model)


def _build_error(option: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError([Fault(file=option, problem=problem, remedy=remedy)])
