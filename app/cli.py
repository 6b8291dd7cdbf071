"""Run a command of the terminal: `python -m app.cli check`, as `python -m app.main check` does."""

from ai_agent_service.cli.main import main

if __name__ == "__main__":
    main()
