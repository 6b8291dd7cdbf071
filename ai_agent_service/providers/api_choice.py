"""Choose between chat completions and the Responses API for each model of a provider."""

import logging
import re
from typing import Literal

from ai_agent_service.config.agent_definition import ApiName
from ai_agent_service.core.errors import ServiceError

logger = logging.getLogger(__name__)

Api = Literal["chat_completions", "responses"]

_OTHER: dict[Api, Api] = {"chat_completions": "responses", "responses": "chat_completions"}

_REFUSALS: dict[Api, re.Pattern[str]] = {
    "chat_completions": re.compile(
        r"v1/responses|use /?responses|not a chat model|unsupported_api_for_model"
        r"|chatcompletion operation does not work|not accessible via the /chat/completions",
        re.IGNORECASE,
    ),
    "responses": re.compile(
        r"(?:with|in|support|supports) the responses api|responses api is enabled only"
        r"|responses operation does not work|unsupported_api_for_model"
        r"|not accessible via the /responses",
        re.IGNORECASE,
    ),
}
"""Words of errors about a model that the API does not have, such as "Function tools with
reasoning_effort are not supported for gpt-5.6 in /v1/chat/completions. To use function tools, use
/v1/responses", "This model is only supported in v1/responses and not in v1/chat/completions", and
Azure's "The chatCompletion operation does not work with the specified model"."""

_REFUSING_STATUSES = frozenset({400, 404, 422, 501})
_ANOTHER_THING_MISSING = re.compile(r"model|deployment|\bitem\b", re.IGNORECASE)
"""Words of a 404 that is not about the address."""


class ApiChoice:
    """The API for each model of one provider: `default` where an agent leaves the choice to us, or
    the other one since the server refused that."""

    def __init__(self, provider: str, default: Api) -> None:
        self._provider = provider
        self._default: Api = default
        self._switched: dict[str, Api] = {}

    def select(self, model: str, wanted: ApiName) -> Api:
        """Return the API for a request to `model` of an agent that wants `wanted`."""
        return self._switched.get(model, self._default) if wanted == "auto" else wanted

    def switch(self, model: str, refused: Api, error: ServiceError) -> Api | None:
        """Return the API that answers in place of `refused`, from now on; None if `error` does not
        refuse the API."""
        if not is_api_refused(refused, error):
            return None
        chosen = _OTHER[refused]
        if self._switched.get(model) != chosen:
            self._switched[model] = chosen
            fields = {"provider": self._provider, "model": model, "api": chosen}
            logger.warning("provider.api_switched", extra={**fields, "cause": error.message})
        return chosen

    def restore(self, model: str) -> None:
        """Return to the default, because the other API is refused too."""
        self._switched.pop(model, None)


def is_api_refused(api: Api, error: ServiceError) -> bool:
    """Return whether `error` says that the server, or the model, does not have `api`."""
    said = error.upstream
    if said is None:
        return False
    text = f"{said.code} {said.message}"
    if said.status in _REFUSING_STATUSES and _REFUSALS[api].search(text):
        return True
    if api == "chat_completions":
        return False
    is_missing = said.status == 404 and not _ANOTHER_THING_MISSING.search(text)
    return is_missing or said.status == 405


def describe_api(choice: ApiChoice, model: str, wanted: ApiName) -> str:
    """Return the API in words for operators, such as `auto: responses`."""
    api = choice.select(model, wanted)
    return f"auto: {api}" if wanted == "auto" else api
