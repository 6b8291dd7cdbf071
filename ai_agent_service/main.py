"""The entry point of `python -m ai_agent_service` and of the shim `python -m app.main`."""

import sys

from ai_agent_service.cli.main import main as run_command


def main() -> None:
    """Run the command that the arguments name; options alone are those of `serve`, as the
    operations document has it."""
    arguments = sys.argv[1:]
    serves = not arguments or (
        arguments[0].startswith("-") and arguments[0] not in ("--help", "--version")
    )
    run_command(["serve", *arguments] if serves else arguments)


if __name__ == "__main__":
    main()
