"""`mulle`: the entrance. Every command is imported only when it is called, so that `--help` stays quick."""

import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from mulle.apps.cli.output import report_error
from mulle.core.errors import MulleError, SpecError
from mulle.core.version import VERSION

# Command -> (module, one line of help). The module has a `typer.Typer` called `app`.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "Write a new project from a template."),
    "adopt": ("adopt", "Seal an existing model file into a bundle."),
    "run": ("run", "Turn the wheel: data to registered model."),
    "models": ("models", "List, show, compare, promote, roll back, reproduce, verify versions."),
    "serve": ("serve", "Serve a deployment over HTTP."),
    "keys": ("keys", "Create, list, revoke API keys of the server."),
    "predict": ("predict", "Score a table with a model version."),
    "loadtest": ("loadtest", "Load a running server; find the rate it carries."),
    "monitor": ("monitor", "Compare what was served with what was learnt."),
    "trace": ("trace", "Follow a prediction back to its data."),
    "events": ("events", "Show and verify the audit log."),
    "up": ("up", "Start server, tracking UI and controller together."),
    "gc": ("gc", "Remove what retention allows; says what first."),
    "doctor": ("doctor", "Check this machine, the installed versions and the project."),
}


class LazyGroup(TyperGroup):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of a project's life."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, imported now; for the list of commands only a name and its line."""
        if cmd_name not in COMMANDS:
            return None
        module_name, text = COMMANDS[cmd_name]
        if ctx.resilient_parsing or ctx.meta.get("mulle.listing"):
            return typer.main.get_command(_line_only(text))
        module = import_module(f"mulle.apps.cli.{module_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is meant; an unknown one is answered with the nearest.

        Raises:
            SpecError: there is no such command.
        """
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            fix = f"did you mean `mulle {near[0]}`?" if near else "`mulle --help` lists the commands"
            raise SpecError("command-unknown", f"there is no command {args[0][:80]!r}", fix=fix)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help without importing any command."""
        ctx.meta["mulle.listing"] = True
        super().format_help(ctx, formatter)


def _line_only(text: str) -> typer.Typer:
    app = typer.Typer(add_completion=False)

    @app.command(help=text)
    def line() -> None: ...  # pyright: ignore[reportUnusedFunction]

    return app


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"mulle {VERSION}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Mulle (물레): from data to a model in production, and round again.",
    epilog="Start with: mulle init churn my-project && cd my-project && mulle run",
)


@app.callback()
def root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback behind an error."),
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version and stop."),
) -> None:
    """Mulle (물레): from data to a model in production, and round again."""
    del version
    if debug:
        os.environ["MULLE_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 when a check said no, 2 for usage or configuration."""
    try:
        result = app(args=arguments, standalone_mode=False, prog_name="mulle")
    except MulleError as error:
        return report_error(error, sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: nothing half-done was kept; the same command continues\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("MULLE_DEBUG"):
            raise
        return _report_unexpected(error, arguments)
    return int(result) if isinstance(result, int) else 0


def _report_unexpected(error: Exception, arguments: list[str] | None) -> int:
    # typer's own usage errors print themselves; anything else is a defect of ours and says so.
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    if type(error).__name__ == "Abort":
        return 130
    problem = MulleError(
        "internal",
        f"{type(error).__name__}: {error}",
        fix="run again with `mulle --debug …` and report the traceback: this is a defect of Mulle",
    )
    return report_error(problem, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
