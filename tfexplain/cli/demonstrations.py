"""The command `demo`."""

import pathlib
from typing import TYPE_CHECKING, Any

from tfexplain.cli.arguments import Debug, OutFolder
from tfexplain.cli.consoles import print_text, progress_bars, reported, stoppable
from tfexplain.cli.models import start_tensorflow
from tfexplain.cli.verdicts import print_plan, print_verdict

if TYPE_CHECKING:
    from tfexplain.demo import Demonstration


def demo(
    out_folder: OutFolder = pathlib.Path("tfexplain-demo"),
    debug: Debug = False,
) -> None:
    """Explain ten handwritten digits by every method, and audit every method."""
    with reported(debug) as stage:
        from tfexplain import files

        files.check_folder(out_folder)
        start_tensorflow()
        from tfexplain import demo as module

        module.check_folder(out_folder)
        stage.begin_work()
        explained = _explained(module.run, out_folder)
        print_text(explained.report())
        with stoppable():
            audited = module.audit(explained, out_folder, announce=print_plan)
        print_verdict(audited.verdict())
        print_text(
            f"{out_folder / 'report.html'}: which of these explanations can be trusted? Open it in "
            "a browser. The same report of your model: tfexplain audit MODEL DATA."
        )


def _explained(run: Any, out_folder: pathlib.Path) -> "Demonstration":
    """Runs the first half, with a bar for each of its parts."""
    with progress_bars() as progress:
        tasks: dict[str, Any] = {}

        def step(name: str, done: int, total: int) -> None:
            part = name.partition(":")[0]
            if part not in tasks:
                tasks[part] = progress.add_task(name, total=total)
            progress.update(tasks[part], completed=done, description=name)

        return run(out_folder, step=step)
