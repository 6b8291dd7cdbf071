"""A shim for `python -m app.main`. The package is `ai_agent_service`."""
