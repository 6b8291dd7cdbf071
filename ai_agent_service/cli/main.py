"""ai-agent-service serve | backup | chat | check | db | eval | init | keys | reload: the commands
of the terminal."""

import importlib
from typing import Any, ClassVar, cast

import click

from ai_agent_service import __version__
from ai_agent_service.cli.conventions import exit_with_faults
from ai_agent_service.cli.streams import open_closed_streams, release_broken_streams
from ai_agent_service.core.errors import ConfigError
from ai_agent_service.core.text import show_foreign


class LazyGroup(click.Group):
    """A group some of whose commands are imported only when they are called, for what they need
    takes time to load."""

    LAZY: ClassVar = {
        "backup": "ai_agent_service.cli.backup:backup",
        "chat": "ai_agent_service.cli.chat:chat",
        "check": "ai_agent_service.cli.check:check",
        "db": "ai_agent_service.cli.db:db",
        "eval": "ai_agent_service.cli.eval:evaluate",
        "init": "ai_agent_service.cli.init:init",
        "keys": "ai_agent_service.cli.keys:keys",
        "reload": "ai_agent_service.cli.reload:reload",
        "serve": "ai_agent_service.cli.serve:serve",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands' names."""
        return sorted([*super().list_commands(ctx), *self.LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in self.LAZY:
            return super().get_command(ctx, cmd_name)
        module, name = self.LAZY[cmd_name].split(":")
        return cast(click.Command, getattr(importlib.import_module(module), name))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; its error message may repeat what others said."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = show_foreign(error.message, keep="\n")
            raise


@click.group(cls=LazyGroup)
@click.version_option(__version__)
def cli() -> None:
    """Agents that appear as models to any OpenAI client."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a configuration with faults ends it with code 2 and one readable
    message."""
    open_closed_streams()
    try:
        cli.main(arguments, prog_name="ai-agent-service", standalone_mode=True)
    except ConfigError as error:
        exit_with_faults(error.faults)
    finally:
        release_broken_streams()


if __name__ == "__main__":
    main()
