"""The facade that plug-ins import from."""

import subprocess
import sys


def test_the_facade_exports_what_it_imports_and_loads_no_part_of_the_server() -> None:
    server = [
        "fastapi",
        "starlette",
        "uvicorn",
        "sqlalchemy",
        "alembic",
        "asyncpg",
        "fastmcp",
        "mcp",
        "httpx2",
        "click",
        "rich",
    ]
    source = (
        "import sys, ai_agent_service.plugins as plugins; print(*sorted(sys.modules)); assert"
        " set(plugins.__all__) <= set(vars(plugins))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "ai_agent_service.plugins" in loaded
    assert [name for name in server if name in loaded] == []
