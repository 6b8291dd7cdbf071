"""GET /v1/models: every agent as a model."""

from typing import Literal

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from app.api.access import Caller
from app.api.dependencies import ServiceDependency
from app.api.openapi import documented

router = APIRouter(tags=["OpenAI"])


class Model(msgspec.Struct):
    """An agent as a model; `created` in Unix seconds."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct):
    """All agents as models."""

    data: list[Model]
    object: Literal["list"] = "list"


@router.get("/v1/models", summary="List the agents as models", openapi_extra=documented(None, ModelList))
async def list_models(service: ServiceDependency, caller: Caller) -> Response:
    """The agents that the key is for, in the order of agent_config.json."""
    agents = service.agents_of(caller)
    models = [Model(agent.agent_id, service.catalog.created, service.settings.service_name) for agent in agents]
    return Response(msgspec.json.encode(ModelList(models)), media_type="application/json")


@router.get("/v1/models/{model}", summary="Show one agent as a model", openapi_extra=documented(None, Model))
async def retrieve_model(model: str, service: ServiceDependency, caller: Caller) -> Response:
    """The agent with this id."""
    agent = service.shown_agent(model, caller)
    found = Model(agent.agent_id, service.catalog.created, service.settings.service_name)
    return Response(msgspec.json.encode(found), media_type="application/json")
