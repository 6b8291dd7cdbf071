"""The MCP server that is called: one tool, over standard input and output, or with `--port` over
streamable HTTP."""

import argparse

import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

server = MCPServer("benchmark")


@server.tool()
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


async def health(request: Request) -> Response:
    """That it is up."""
    return PlainTextResponse("up")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    port = parser.parse_args().port
    if port is None:
        server.run()
    else:
        app = server.streamable_http_app()
        app.router.routes.append(Route("/health", health))
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
