"""The fastmcp client alone, calling the tool again and again: prints the milliseconds of CPU that a
call takes this process."""

import argparse
import sys
import time

import uvloop
from fastmcp.client import Client
from fastmcp.client.transports import ClientTransport, StdioTransport, StreamableHttpTransport

ARGUMENTS = {"a": 6, "b": 7}


async def measure(transport: ClientTransport, calls: int) -> float:
    """Milliseconds of CPU a call."""
    async with Client(transport) as client:
        await client.list_tools()
        for _ in range(calls // 4):
            await client.call_tool_mcp("multiply", ARGUMENTS)
        before = time.process_time()
        for _ in range(calls):
            result = await client.call_tool_mcp("multiply", ARGUMENTS)
            assert not result.is_error
        return (time.process_time() - before) / calls * 1e3


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--url")
    arguments = parser.parse_args()
    if arguments.url:
        chosen: ClientTransport = StreamableHttpTransport(arguments.url)
    else:
        chosen = StdioTransport(sys.executable, ["-m", "benchmarks.mcp_server"], keep_alive=False)
    print(uvloop.run(measure(chosen, arguments.calls)))
