"""P, the reference: the naive hop that anyone would write, FastAPI and httpx2 in one uvicorn
process, bytes passed through."""

import argparse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask


def create_app(upstream: str) -> FastAPI:
    """The hop to `upstream`, such as `http://127.0.0.1:9000/v1`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        # httpx2 holds 100 connections by default and gives up waiting after 5 seconds; a thousand
        # open streams need neither limit.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx2.AsyncClient(base_url=upstream, limits=limits, timeout=None) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/v1/chat/completions")
    async def relay(request: Request) -> StreamingResponse:
        client: httpx2.AsyncClient = app.state.client
        asked = client.build_request(
            "POST",
            "/chat/completions",
            content=await request.body(),
            headers={"content-type": "application/json", "authorization": "Bearer x"},
        )
        answer = await client.send(asked, stream=True)
        return StreamingResponse(
            answer.aiter_raw(),
            status_code=answer.status_code,
            media_type=answer.headers.get("content-type"),
            background=BackgroundTask(answer.aclose),
        )

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    arguments = parser.parse_args()
    uvicorn.run(
        create_app(arguments.upstream), port=arguments.port, log_level="warning", access_log=False
    )
