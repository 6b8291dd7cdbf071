"""Asks a model for a judgement in a given form, and again where what it says has not that form."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from ai_agent_service.core.errors import RunTimeoutError, ServiceError
from ai_agent_service.core.messages import Message
from ai_agent_service.core.usage import Usage
from ai_agent_service.evaluation.model_client import (
    ModelClient,
    build_response_format,
    to_strict_schema,
)
from ai_agent_service.evaluation.model_option import Model

ATTEMPTS = 3
"""How often a judge is asked for the same judgement before it counts as not judged."""

MAX_REPEATED = 2_000
"""Characters of an answer of no use that the judge is shown again."""

MAX_ANSWER = 200_000
"""Characters of one answer that are read; what is longer is of no use."""

Form = TypeVar("Form", bound=BaseModel)


class JudgementError(Exception):
    """There is no judgement, in words for whoever reads the results."""


class Judge:
    """A model that judges; each of its answers takes `timeout` seconds at most, and no more than
    `parallel` are awaited at once.

    It is asked for the form as OpenAI's `response_format`, and at temperature 0. A model that
    refuses either is asked without from then on, and so is told of the form in words alone.
    """

    def __init__(self, model: Model, timeout: float, parallel: int) -> None:
        self.model = model
        self._timeout = timeout
        self._free = asyncio.Semaphore(parallel)
        self._client = ModelClient(model, timeout, max_characters=MAX_ANSWER)

    async def ask(
        self,
        prompt: str,
        form: type[Form],
        fault: Callable[[Form], str | None],
        usages: list[Usage | None],
    ) -> Form:
        """What it says to `prompt`, which has `form` and no `fault`; what each answer took is added
        to `usages`. Raises JudgementError."""
        messages = [Message(role="user", content=prompt)]
        problem = ""
        for _ in range(ATTEMPTS):
            text = await self._request_answer(messages, form, usages)
            found, problem = _read(text, form)
            if found is not None:
                objection = fault(found)
                if objection is None:
                    return found
                problem = objection
            again = (
                f"That cannot be used: {problem}. Answer with one JSON object by this JSON Schema,"
                f" and nothing else:\n{_format_schema(form)}"
            )
            messages = [
                Message(role="user", content=prompt),
                Message(role="assistant", content=text[:MAX_REPEATED] or "{}"),
                Message(role="user", content=again),
            ]
        raise JudgementError(
            f"the judge gave no answer that can be used, {ATTEMPTS} times; the last time {problem}"
        )

    async def _request_answer(
        self, messages: list[Message], form: type[BaseModel], usages: list[Usage | None]
    ) -> str:
        asked = build_response_format(form.__name__, form.model_json_schema())
        choices: tuple[dict[str, Any], ...] = ({"temperature": 0, **asked}, asked, {})
        try:
            async with self._free:
                answer = await self._client.ask(messages, choices)
        except RunTimeoutError:
            raise JudgementError(
                f"the judge cannot be asked: it took longer than {self._timeout:g} s"
            ) from None
        except ServiceError as error:
            raise JudgementError(
                f"the judge cannot be asked ({error.code}): {error.message}"
            ) from None
        usages.append(answer.usage)
        return answer.text + answer.refusal


def _read(text: str, form: type[Form]) -> tuple[Form | None, str]:
    """The JSON object that is `text`, or has lines of its own in it, and what is wrong with it.

    One within a sentence is no judgement: a judge may quote what an answer would have it say.
    """
    if len(text) > MAX_ANSWER:
        return None, f"it is longer than {MAX_ANSWER:,} characters"
    lines = text.split("\n")
    start = next(
        (number for number, line in enumerate(lines) if line.lstrip().startswith("{")), None
    )
    end = next(
        (
            number
            for number in range(len(lines) - 1, -1, -1)
            if lines[number].rstrip().endswith("}")
        ),
        None,
    )
    if start is None or end is None or end < start:
        return None, "it has no JSON object on lines of its own"
    try:
        # A score is a number: pydantic would else take `true` for 1, which may be the highest.
        return form.model_validate_json("\n".join(lines[start : end + 1]), strict=True), ""
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        return None, f"{place}: {first['msg']}" if place else first["msg"]


def _format_schema(form: type[BaseModel]) -> str:
    return msgspec.json.encode(to_strict_schema(form.model_json_schema())).decode()
