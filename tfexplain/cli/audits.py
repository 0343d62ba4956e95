"""The command `audit`."""

import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfexplain.cli.arguments import BatchSize, Debug, Model, OutFolder, Preprocess, Weights
from tfexplain.cli.consoles import err, print_text, reported, stoppable
from tfexplain.cli.models import input_shape, start_tensorflow, warn_of_random_weights
from tfexplain.cli.verdicts import print_plan, print_verdict
from tfexplain.names import REPORTED_AUDITS

if TYPE_CHECKING:
    import keras

    from tfexplain.report import Data, Plan, Verdict

NOT_TRUSTED = 3


def audit(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder of images (class subfolders are labels), an image, .npz (keys x and y), "
            ".npy, .csv (a table; one column more than the model takes is the label), or "
            "module:function, which returns a tf.data.Dataset or arrays (x, y).",
        ),
    ],
    out_folder: OutFolder = pathlib.Path("tfexplain-audit"),
    weights: Weights = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", help="Methods; default: all that fit the model."),
    ] = None,
    audits: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help=f"Audits: {', '.join(REPORTED_AUDITS)}. Default: all that make sense.",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Samples at most; default: 8, 32 or 128.")
    ] = None,
    preprocess: Preprocess = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|INDEX", help="The explained output, of a model with several outputs."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="none|FILE",
            help="none: explain the predictions. FILE: .txt or .json with the names of the classes "
            "in the order of the outputs, or .npy with one index per sample.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples and steps.")] = False,
    thorough: Annotated[bool, typer.Option("--thorough", help="More samples and steps.")] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="METHOD",
            help="Exit with status 3 unless this method is trustworthy. Can be repeated.",
        ),
    ] = None,
    last_layers: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Similarity above which the last layer does not matter; 0.95."
        ),
    ] = None,
    other_class: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Similarity above which the class does not matter; 0.95."),
    ] = None,
    directions: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="|cos| above which directions are lost; 0.99."),
    ] = None,
    batch_size: BatchSize = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    debug: Debug = False,
) -> None:
    """Say which explanations of a model can be trusted: all methods, all audits, one verdict.

    What is done is kept in DIR, and the same command continues after it was stopped.
    """
    with reported(debug) as stage:
        if quick and thorough:
            raise ValueError("--quick and --thorough are given. Give one of them.")
        chosen = _names(methods)
        if chosen and (strange := [name for name in fail_on or [] if name not in chosen]):
            raise ValueError(
                f"--fail-on {', '.join(strange)} is not among --methods {', '.join(chosen)}."
            )
        from tfexplain import files

        files.check_folder(out_folder)
        start_tensorflow()
        from tfexplain import loading, report
        from tfexplain.analyzers import ANALYZERS, resolve_name

        for name in fail_on or []:
            resolve_name(name)
            if chosen is None and name not in ANALYZERS:
                raise ValueError(
                    f"--fail-on {name} is another name of a method, and all are audited by their "
                    "own. Give that, or the same name to --methods."
                )
        given = {"last_layers": last_layers, "other_class": other_class, "directions": directions}
        thresholds = report.Thresholds(**{k: v for k, v in given.items() if v is not None})
        preset = "quick" if quick else "thorough" if thorough else "default"
        network = loading.load_model(model, weights)
        warn_of_random_weights(model, weights)
        explained, num_outputs = _explained(network, output)
        samples = report.load_data(
            data,
            input_shape(network),
            num_outputs,
            preprocess=preprocess,
            labels=labels,
            count=images or report.IMAGES[preset],
            seed=seed,
        )

        def announce(plan: "Plan") -> None:
            print_plan(plan, samples.notes)
            stage.begin_work()

        with stoppable():
            result = report.audit(
                network,
                samples.x,
                samples.y,
                methods=chosen,
                audits=_names(audits),
                images=images,
                preset=preset,
                thresholds=thresholds,
                output=explained,
                pixels=samples.pixels,
                preprocess=samples.preprocess,
                seed=seed,
                batch_size=batch_size,
                folder=out_folder,
                about=_about(data, samples),
                announce=announce,
            )
        verdict = result.verdict()
        print_verdict(verdict)
        print_text(f"{out_folder}: report.html, verdict.json, audit.json, results/*.nc.")
        if distrusted := _distrusted(verdict, fail_on or []):
            print_text("; ".join(distrusted), console=err, label="not trusted", style="bold red")
            raise typer.Exit(NOT_TRUSTED)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _explained(network: "keras.Model", text: str | None) -> tuple[str | int | None, int | None]:
    """The explained output, and how many numbers it has; None if that is unknown."""
    from tfexplain.analyzers.reversed import explained_output
    from tfexplain.graph import has_graph, trace

    if not has_graph(network):
        if text is not None:
            raise ValueError(f"--output {text}: the model {network.name!r} has no graph.")
        shape = network.output_shape
        return None, shape[1] if isinstance(shape, tuple) and len(shape) == 2 else None
    graph = trace(network)
    chosen: str | int | None = text
    if text is not None and text.isdecimal() and text not in graph.output_names:
        chosen = int(text)
    shape = explained_output(graph, chosen).shape
    return chosen, shape[1] if len(shape) == 2 else None


def _about(source: str, samples: "Data") -> dict[str, Any]:
    """What the report says of the command and its data."""
    about: dict[str, Any] = {"command": _command(), "data": source, "notes": samples.notes}
    about |= {"classes": samples.classes, "names": samples.names}
    return about if samples.given is None else {**about, "given": samples.given}


def _command() -> str:
    return shlex.join(["tfexplain", *sys.argv[1:]])


def _distrusted(verdict: "Verdict", names: list[str]) -> list[str]:
    """Says of each method that is not known to be trustworthy why."""
    reasons = []
    for name in names:
        if name not in verdict.methods:
            reason = verdict.left_out.get(name, "it was not audited")
            reasons.append(f"{name} was not audited: {reason}")
            continue
        row = verdict[name]
        failed = [
            f"{check} ({cell.text})" for check, cell in row.cells.items() if cell.passed is False
        ]
        if row.trust != "trustworthy":
            reasons.append(f"{name} is {row.trust}: {', '.join(failed) or 'no test was measured'}")
    return reasons
