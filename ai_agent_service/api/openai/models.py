"""GET /v1/models: every agent as a model."""

from typing import Any, Literal

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from ai_agent_service.api.http.access import Caller
from ai_agent_service.api.http.body import ServiceDependency
from ai_agent_service.api.http.openapi import describe_route
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.config.display_definition import SuggestionPrompt
from ai_agent_service.runtime.service import Service

router = APIRouter(tags=["OpenAI"])

CAPABILITIES = {"builtin_tools": False, "usage": True}
"""What Open WebUI is told of each agent that does not say otherwise: it is not to add tools of its
own, and may ask for usage."""


class Suggestion(msgspec.Struct):
    """A question that a new chat offers: the two lines of its card, and what it sends."""

    title: tuple[str, str]
    content: str


class Tag(msgspec.Struct):
    """A tag that models are sorted by."""

    name: str


class Meta(msgspec.Struct, kw_only=True):
    """How Open WebUI shows a model."""

    capabilities: dict[str, bool]
    description: str | UnsetType = UNSET
    suggestion_prompts: list[Suggestion] | UnsetType = UNSET
    tags: list[Tag] | UnsetType = UNSET
    profile_image_url: str | UnsetType = UNSET


class Info(msgspec.Struct):
    """Where Open WebUI looks for `meta`."""

    meta: Meta


class Model(msgspec.Struct, kw_only=True):
    """An agent as a model; `created` in Unix seconds. `name` and `info` are for Open WebUI, and
    passed over by others."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"
    name: str | UnsetType = UNSET
    info: Info


class ModelList(msgspec.Struct):
    """All agents as models."""

    data: list[Model]
    object: Literal["list"] = "list"


@router.get(
    "/v1/models", summary="List the agents as models", openapi_extra=describe_route(None, ModelList)
)
async def list_models(service: ServiceDependency, caller: Caller) -> Response:
    """The agents that the key is for, in the order of agent_config.json."""
    models = [_build_model(agent.definition, service) for agent in service.list_agents(caller)]
    return Response(msgspec.json.encode(ModelList(models)), media_type="application/json")


@router.get(
    "/v1/models/{model}",
    summary="Show one agent as a model",
    openapi_extra=describe_route(None, Model),
)
async def retrieve_model(model: str, service: ServiceDependency, caller: Caller) -> Response:
    """The agent with this id."""
    found = _build_model(service.find_visible_agent(model, caller).definition, service)
    return Response(msgspec.json.encode(found), media_type="application/json")


def _build_model(agent: AgentDefinition, service: Service) -> Model:
    display = agent.display
    meta = Meta(
        capabilities=CAPABILITIES | display.capabilities,
        description=_replace_empty(display.description or agent.description),
        suggestion_prompts=_replace_empty(
            [_build_suggestion(prompt) for prompt in display.suggestion_prompts]
        ),
        tags=_replace_empty([Tag(tag) for tag in display.tags]),
        profile_image_url=_replace_empty(display.avatar),
    )
    return Model(
        id=agent.agent_id,
        created=service.catalog.created,
        owned_by=service.settings.service_name,
        name=_replace_empty(display.name),
        info=Info(meta),
    )


def _replace_empty(value: Any) -> Any:
    return value or UNSET


def _build_suggestion(prompt: SuggestionPrompt) -> Suggestion:
    """The card of `prompt`; without a title of its own it is shown by what it sends."""
    return Suggestion((prompt.title or prompt.content, prompt.subtitle), prompt.content)
