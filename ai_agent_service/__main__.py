"""Run `python -m ai_agent_service`."""

from ai_agent_service.main import main

main()
