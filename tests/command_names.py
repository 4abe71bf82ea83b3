"""The commands as typer knows them, for the tests that hold the pages against them."""

from typer.main import get_command

from cliad.cli import app


def named_commands(group, before=""):
    """All commands by what one types after `cliad`, those of groups such as `data check` too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from named_commands(command, f"{before}{name} ")
        else:
            yield before + name, command


NAMES = dict(named_commands(get_command(app)))
