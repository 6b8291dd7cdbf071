"""Asks the model of an evaluation, with the settings that it accepts."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ai_agent_service.core.errors import ContextTooLongError, InvalidRequestError
from ai_agent_service.core.messages import Message
from ai_agent_service.evaluation.model_option import Model
from ai_agent_service.providers.base import ModelRequest
from ai_agent_service.providers.complete import Completion, complete


class ModelClient:
    """Asks `model`; each answer takes `timeout` seconds and `max_characters` at most."""

    def __init__(self, model: Model, timeout: float, *, max_characters: int | None = None) -> None:
        self._model = model
        self._timeout = timeout
        self._max_characters = max_characters
        self._refused = 0
        self.questions = 0
        """How often the model was asked."""

    async def ask(
        self, messages: Sequence[Message], choices: Sequence[Mapping[str, Any]]
    ) -> Completion:
        """Return the answer to `messages` with the first of `choices`, which are settings, that the
        model accepts. Those that it refused are not tried again."""
        for number in range(self._refused, len(choices)):
            request = ModelRequest(
                model=self._model.name,
                messages=tuple(messages),
                settings=choices[number],
                deadline=time.monotonic() + self._timeout,
            )
            self.questions += 1
            try:
                answer = await complete(
                    self._model.provider, request, max_characters=self._max_characters
                )
            except InvalidRequestError as error:
                if isinstance(error, ContextTooLongError) or number == len(choices) - 1:
                    raise
            else:
                self._refused = max(self._refused, number)
                return answer
        raise AssertionError("the last of the choices ends this")


def build_response_format(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the setting that has a model answer with JSON by `schema`, where the provider can."""
    form = {"name": name, "strict": True, "schema": to_strict_schema(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def to_strict_schema(schema: Any) -> Any:
    """`schema` as OpenAI's structured outputs take one: every property is required, and there are
    no others.

    Source: https://platform.openai.com/docs/guides/structured-outputs, "Supported schemas".
    """
    if isinstance(schema, list):
        return [to_strict_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: to_strict_schema(value) for name, value in schema.items() if name != "default"}
    properties = schema.get("properties")
    if schema.get("type") == "object" and isinstance(properties, dict):
        kept = {
            name: to_strict_schema(value) for name, value in properties.items()
        }  # one may be called `default`
        found |= {"properties": kept, "required": list(properties), "additionalProperties": False}
    return found
