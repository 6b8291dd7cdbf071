"""Run `python -m ai_agent_service.cli`."""

from ai_agent_service.cli.main import main

main()
