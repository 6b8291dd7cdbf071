"""What the commands have in common: exit codes, waits, and how they report faults."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from ai_agent_service.cli.streams import echo

EXIT_CONFIGURATION = 2
EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""

CONNECT_SECONDS = 15.0
"""How long an agent's MCP servers are waited for before it is first asked."""

STARTER_NOTE = (
    "this folder has no agent_config.json, so the agents that come with the program are served. To"
    " have them as files to edit: ai-agent-service init"
)


def exit_with_faults(faults: Sequence[object], consequence: str = "") -> NoReturn:
    """Print the faults of the configuration, one a line, and end the command."""
    plural = "s" if len(faults) > 1 else ""
    echo(f"The configuration has {len(faults)} fault{plural}{consequence}:", err=True)
    for fault in faults:
        echo(f"  - {fault}", err=True)
    sys.exit(EXIT_CONFIGURATION)
