"""The command `demo`."""

import pathlib
from typing import Any

from tfexplain.cli.arguments import Debug, OutFolder
from tfexplain.cli.consoles import print_text, progress_bars, reported
from tfexplain.cli.models import start_tensorflow


def demo(
    out_folder: OutFolder = pathlib.Path("tfexplain-demo"),
    debug: Debug = False,
) -> None:
    """Train a small network on handwritten digits and explain ten of them with every method."""
    with reported(debug) as stage:
        from tfexplain import files

        files.check_folder(out_folder)
        start_tensorflow()
        from tfexplain import demo as module

        stage.begin_work()
        with progress_bars() as progress:
            tasks: dict[str, Any] = {}

            def step(name: str, done: int, total: int) -> None:
                part = name.partition(":")[0]
                if part not in tasks:
                    tasks[part] = progress.add_task(name, total=total)
                progress.update(tasks[part], completed=done, description=name)

            result = module.run(out_folder, step=step)
        print_text(result.report())
