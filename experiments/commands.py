"""The command lines of experiments and papers: their options, parsed by typer."""

from __future__ import annotations

import enum
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from experiments.claim_table import PROTOCOLS

Protocols = enum.Enum("Protocols", {name: name for name in (*PROTOCOLS, "both")}, type=str)
# Options that take several values, as in `--models cifar_cnn squeezenet`.
SEVERAL = ("--models", "--data", "--weights", "--only")

Models = Annotated[list[str] | None, typer.Option(metavar="NAME...", help="networks")]
Images = Annotated[int | None, typer.Option(min=1, metavar="N", help="number of images")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=PATH...",
        help="images: cifar10=FILE, mnist=FILE, imagenet=FOLDER, two_classes=FOLDER; a PATH alone "
        "if there is one kind",
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FILE...",
        help="weight files of networks; a FILE alone if there is one network",
    ),
]
Out = Annotated[pathlib.Path | None, typer.Option(metavar="FOLDER", help="for all results")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="of all random numbers")]
Protocol = Annotated[
    Protocols, typer.Option(help="with the traps of the published code, or without")
]
Tiny = Annotated[bool, typer.Option("--tiny", help="a smoke run of seconds")]
Resume = Annotated[
    bool, typer.Option("--resume", help="keep parts that were made by the same command")
]
Only = Annotated[list[str] | None, typer.Option(metavar="NAME...", help="some experiments")]
Collect = Annotated[bool, typer.Option("--collect", help="compute nothing; read what --out has")]
Results = Annotated[
    pathlib.Path | None, typer.Option(metavar="FOLDER", help="also write claims and figures here")
]


@dataclass(frozen=True)
class Options:
    """What the command line of an experiment says, as it was given.

    Args:
        models: Names of networks.
        images: Number of images; None if it is not given, as `out`.
        data: KIND=PATH, or a PATH alone.
        weights: NAME=FILE, or a FILE alone.
        out: Folder for all results.
        seed: The seed of all random numbers.
        protocol: Name of a protocol, or "both".
        tiny: Whether it is a smoke run.
        resume: Whether parts that are there are kept.
    """

    models: Sequence[str] = ()
    images: int | None = None
    data: Sequence[str] = ()
    weights: Sequence[str] = ()
    out: pathlib.Path | None = None
    seed: int = 0
    protocol: str = "both"
    tiny: bool = False
    resume: bool = False


@dataclass(frozen=True)
class PaperOptions(Options):
    """What the command line of a paper says.

    Args:
        only: Names of experiments.
        collect: Whether saved results are read, and nothing is computed.
        results: Folder for a second table of claims and its figures, or None.
    """

    only: Sequence[str] = ()
    collect: bool = False
    results: pathlib.Path | None = None


def run_experiment(
    work: Callable[[Options], None], program: str, summary: str, argv: Sequence[str] | None
) -> int:
    """Parses the options of an experiment and does its work.

    Args:
        work: Function of the options; it raises `typer.BadParameter` where they are wrong.
        program: Full name of the module.
        summary: What `--help` says.
        argv: Words of the command line; None: those of the process.

    Returns:
        The exit status: 0 done, 2 wrong options.
    """

    def command(
        models: Models = None,
        images: Images = None,
        data: Data = None,
        weights: Weights = None,
        out: Out = None,
        seed: Seed = 0,
        protocol: Protocol = Protocols.both,
        tiny: Tiny = False,
        resume: Resume = False,
    ) -> None:
        options = Options(
            models=models or (),
            images=images,
            data=data or (),
            weights=weights or (),
            out=out,
            seed=seed,
            protocol=protocol.value,
            tiny=tiny,
            resume=resume,
        )
        work(options)

    return _run(command, program, summary, argv)


def run_paper(
    work: Callable[[PaperOptions], None], program: str, summary: str, argv: Sequence[str] | None
) -> int:
    """Parses the options of all experiments of a paper and does their work; as `run_experiment`."""

    def command(
        models: Models = None,
        images: Images = None,
        data: Data = None,
        weights: Weights = None,
        out: Out = None,
        seed: Seed = 0,
        protocol: Protocol = Protocols.both,
        tiny: Tiny = False,
        resume: Resume = False,
        only: Only = None,
        collect: Collect = False,
        results: Results = None,
    ) -> None:
        options = PaperOptions(
            models=models or (),
            images=images,
            data=data or (),
            weights=weights or (),
            out=out,
            seed=seed,
            protocol=protocol.value,
            tiny=tiny,
            resume=resume,
            only=only or (),
            collect=collect,
            results=results,
        )
        work(options)

    return _run(command, program, summary, argv)


def _run(
    command: Callable[..., None], program: str, summary: str, argv: Sequence[str] | None
) -> int:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=summary)(command)
    words = sys.argv[1:] if argv is None else argv
    status = 0
    try:
        app(args=_one_value_each(words), prog_name=f"python -m {program}")
    except SystemExit as stop:  # also after a command that succeeded
        status = int(stop.code or 0)
    return status


def _one_value_each(words: Iterable[str]) -> list[str]:
    """Writes `--models a b` as `--models a --models b`: options of typer take one value.

    The commands in tables of claims give several.
    """
    written: list[str] = []
    option = ""
    for word in words:
        if word.startswith("-"):
            option = word if word in SEVERAL else ""
        elif option and written[-1] != option:
            written.append(option)
        written.append(word)
    return written
