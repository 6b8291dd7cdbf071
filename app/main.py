"""Start the service: `python -m app.main [--debug] [--host] [--port] [--workers]`, or run another
command by its name."""

from ai_agent_service.main import main

if __name__ == "__main__":
    main()
