"""The command line: parses with typer, calls the library, prints with rich.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Exit status: 0
done, 1 the work failed, 2 bad arguments or input.
"""

import typer

from tfexplain.cli.analyzers import describe, export, methods
from tfexplain.cli.arguments import parse_options
from tfexplain.cli.credits import koopman
from tfexplain.cli.demonstrations import demo
from tfexplain.cli.explanations import explain

__all__ = ["app", "parse_options"]

app = typer.Typer(
    help="Explain predictions of Keras 3 models: LRP, Deep Taylor and gradient methods.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (demo, explain, methods, describe, export, koopman):
    app.command()(_command)
