"""What all experiments share: options, tasks, saved Datasets, figures, findings and claims.

An experiment is one module with an `Experiment`:

* `compute(task)` returns the Dataset of one network under one protocol, and is the only expensive
  step. It is saved as soon as it is there, so that a run can be resumed;
* `judge(dataset)` returns what it says about claims of the paper;
* `draw(datasets)` returns figures of all tasks.

The last two read Datasets alone, so that pages are redone without computing.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import pathlib
import pkgutil
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import typer
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from experiments.claim_table import NOT_TESTED, PROTOCOLS, Claim, ClaimTable, Criterion, Finding
from experiments.commands import Options, PaperOptions, run_experiment, run_paper
from models.weights import TRAINED
from tfexplain import netcdf, results
from tfexplain.files import write_atomically
from tfexplain.runs import differing

OUTPUT = pathlib.Path("experiments") / "output"
# What to do with a Dataset that is damaged.
RECOMPUTED = "Remove it, and it is computed again."
# What findings call networks whose weights were never trained.
RANDOM = "random weights"
# Checksum of a weight file -> what every result with these weights has to say.
REMARKS = {
    "c6f151f730613dbc247944779577d6b8965eff6f29eb8056faf88e5e5a56d8b1": (
        "trained on the JPEG form of CIFAR-10"
    ),
}


@dataclass(frozen=True)
class Request:
    """What a run was asked for.

    Args:
        models: Names of networks; which there are says the experiment.
        images: Number of images; 0 where none are read.
        data: Kind of images ("cifar10", "imagenet", "mnist", "two_classes") -> folder or file.
        weights: Name of a network -> weight file, or a word that its builder knows.
        out: Folder for Datasets, figures and findings.
        seed: Integer from which all random numbers come.
        protocols: Names of protocols.
        tiny: A smoke run: everything small, the numbers mean nothing.
        resume: Take results that `out` has already, if they were made with the same settings.
    """

    models: tuple[str, ...]
    images: int = 0
    data: Mapping[str, pathlib.Path] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    out: pathlib.Path = OUTPUT
    seed: int = 0
    protocols: tuple[str, ...] = PROTOCOLS
    tiny: bool = False
    resume: bool = False


@dataclass(frozen=True)
class Task:
    """One network under one protocol: what `compute` gets.

    Args:
        request: What the run was asked for.
        model: Name of the network.
        protocol: Name of the protocol.
        experiment: Name of the experiment.
        files: Name -> checksum of the files that were read; `uses` fills it.
        remarks: What every result on the network has to say; `uses` fills it.
    """

    request: Request
    model: str
    protocol: str
    experiment: str = ""
    files: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def path(self) -> pathlib.Path:
        """File of the task's Dataset."""
        return self.request.out / f"{self.experiment}-{self.model}-{self.protocol}.nc"

    def scratch(self, name: str) -> pathlib.Path:
        """Returns a file for what `compute` keeps on its way, such as the `path` of an audit."""
        folder = self.request.out / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.path.stem}-{name}.nc"

    def clear(self) -> None:
        """Removes what `scratch` kept of this task."""
        for path in (self.request.out / "scratch").glob(f"{self.path.stem}-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def read_again(self, files: Mapping[str, str]) -> bool:
        """Tells whether the named files still have the checksums with which they were read."""
        given = [*self.request.data.values(), *map(pathlib.Path, self.request.weights.values())]
        # A file that was given counts, also where one of the project has the same name.
        for path in [*TRAINED.iterdir(), *given]:
            if path.name in files:
                self.uses(path)
        return not differing({name: self.files.get(name) for name in files}, files)

    def generator(self, *keys: str | int) -> np.random.Generator:
        """Returns random numbers that depend on the seed and the keys alone.

        The protocol is no key: both protocols see the same draws.
        """
        codes = [zlib.crc32(str(key).encode()) for key in keys]
        return np.random.default_rng([self.request.seed, *codes])

    @property
    def network(self) -> str:
        """What findings call the network: its name, and what is to know about its weights."""
        random = self.request.weights.get(self.model) == "random"
        remarks = [*([RANDOM] if random else []), *self.remarks]
        return f"{self.model} ({', '.join(remarks)})" if remarks else self.model

    def uses(self, path: str | pathlib.Path) -> pathlib.Path:
        """Notes the name and checksum of a file that is read, and returns its path.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}. Check --data and --weights.")
        checksum = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                checksum.update(block)
        self.files[path.name] = checksum.hexdigest()
        remark = REMARKS.get(self.files[path.name])
        if remark and remark not in self.remarks:
            self.remarks.append(remark)
        return path


@dataclass(frozen=True)
class Experiment:
    """One experiment of a paper.

    Args:
        paper: Name of the package.
        name: Name of the module.
        summary: One line for `--help`.
        compute: Task -> Dataset.
        judge: Dataset -> findings, made with `finding`.
        draw: Datasets of all tasks -> figures by name.
        models: Networks that are used if none are named.
        known_models: All networks that can be named.
        images: Default number of images; 0: the experiment reads none.
        data: Kinds of images that `--data` can name.
        tiny: What `--tiny` changes, as fields of `Request`.

    Example:
        >>> EXPERIMENT = Experiment("sixt2020", "csc", "...", compute, judge, draw, ("cifar_cnn",))
        >>> main = EXPERIMENT.main
    """

    paper: str
    name: str
    summary: str
    compute: Callable[[Task], xr.Dataset]
    judge: Callable[[xr.Dataset], Iterable[Finding]]
    draw: Callable[[Sequence[xr.Dataset]], Mapping[str, Figure]]
    models: tuple[str, ...]
    known_models: tuple[str, ...] = ()
    images: int = 0
    data: tuple[str, ...] = ("cifar10", "imagenet")
    tiny: Mapping[str, object] = field(default_factory=dict)

    def request(self, options: Options) -> Request:
        """Returns what options ask of this experiment.

        Raises:
            ValueError: For an unknown network.
        """
        given = {"models": tuple(options.models), "images": options.images}
        defaults = {"models": self.models, "images": self.images}
        defaults |= dict(self.tiny) if options.tiny else {}
        chosen = {key: given[key] or default for key, default in defaults.items()}
        known = tuple(dict.fromkeys([*self.models, *self.known_models, *defaults["models"]]))
        unknown = [model for model in chosen["models"] if model not in known]
        if unknown:
            raise ValueError(
                f"{self.name} knows no network {', '.join(unknown)}. Known: {', '.join(known)}."
            )
        return Request(
            **chosen,
            data=_named_paths("--data", options.data, self.data),
            weights=_named("--weights", options.weights, chosen["models"]),
            out=options.out or OUTPUT / self.paper,
            seed=options.seed,
            protocols=PROTOCOLS if options.protocol == "both" else (options.protocol,),
            tiny=options.tiny,
            resume=options.resume,
        )

    def run(self, request: Request) -> tuple[list[xr.Dataset], list[Finding]]:
        """Computes all tasks, or loads those that are there, and writes what follows from them."""
        request.out.mkdir(parents=True, exist_ok=True)
        datasets = [
            self._dataset(Task(request, model, protocol, self.name))
            for model in request.models
            for protocol in request.protocols
        ]
        return datasets, self.publish(datasets, request.out)

    def publish(self, datasets: Sequence[xr.Dataset], out: pathlib.Path) -> list[Finding]:
        """Writes figures and findings of Datasets into a folder."""
        findings = [finding for dataset in datasets for finding in self.judge(dataset)]
        for name, figure in self.draw(datasets).items():
            save_figure(figure, out / f"{name}.png")
        save_json([finding.to_config() for finding in findings], out / f"{self.name}.json")
        return findings

    def saved(self, out: pathlib.Path) -> list[xr.Dataset]:
        """Returns the Datasets of this experiment in a folder, in the order of a run."""
        datasets = [netcdf.read(path, RECOMPUTED) for path in sorted(out.glob(f"{self.name}-*.nc"))]
        models = [*self.models, *self.known_models]

        def order(dataset: xr.Dataset) -> tuple:
            model, protocol = dataset.attrs["model"], dataset.attrs["protocol"]
            place = models.index(model) if model in models else len(models)
            return place, model, PROTOCOLS.index(protocol)

        return sorted(datasets, key=order)

    def command(self, task: Task) -> str:
        """Returns the command that does a task; of paths only the names are kept."""
        request = task.request
        words = [f"python -m experiments.{self.paper}.{self.name}", f"--models {task.model}"]
        if request.images:
            words.append(f"--images {request.images}")
        if request.data:
            named = (f"{kind}={path.name}" for kind, path in request.data.items())
            words.append(f"--data {' '.join(named)}")
        if task.model in request.weights:
            name = pathlib.Path(request.weights[task.model]).name
            words.append(f"--weights {task.model}={name}")
        words += [f"--seed {request.seed}", f"--protocol {task.protocol}"]
        return " ".join([*words, *(["--tiny"] if request.tiny else [])])

    def _dataset(self, task: Task) -> xr.Dataset:
        command = self.command(task)
        versions = json.dumps(results.versions(), sort_keys=True)
        if task.request.resume and task.path.is_file():
            saved = netcdf.read(task.path, RECOMPUTED)
            before = {key: saved.attrs[key] for key in ("command", "versions")}
            same = not differing({"command": command, "versions": versions}, before)
            if same and task.read_again(json.loads(saved.attrs["files"])):
                return saved
        if not task.request.resume:
            task.clear()
        dataset = self.compute(task)
        dataset.attrs |= {
            "paper": self.paper,
            "experiment": self.name,
            "model": task.model,
            "network": task.network,
            "protocol": task.protocol,
            "seed": task.request.seed,
            "tiny": int(task.request.tiny),
            "command": command,
            "files": json.dumps(task.files, sort_keys=True),
            "versions": versions,
        }
        netcdf.write(dataset, task.path)
        task.clear()
        return dataset

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs the experiment from the command line and prints its findings.

        Returns:
            The exit status.
        """
        return run_experiment(
            self._main, f"experiments.{self.paper}.{self.name}", self.summary, argv
        )

    def _main(self, options: Options) -> None:
        try:
            request = self.request(options)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        _, findings = self.run(request)
        print_findings(findings)
        print(f"Datasets, figures and findings are in {request.out}.")


def finding(
    dataset: xr.Dataset,
    claim: str,
    criteria: Sequence[Criterion] = (),
    **more: str | Mapping[str, float],
) -> Finding:
    """Returns a finding from the Dataset of a task.

    Args:
        dataset: What `compute` returned, with the attributes of the run.
        claim: Id of the claim.
        criteria: See `Finding`, as `numbers`, `note` and `reason` in `more`.
        **more: See `criteria`.
    """
    attributes = dataset.attrs
    return Finding(
        claim,
        attributes["experiment"],
        attributes["protocol"],
        attributes["network"],
        tuple(criteria),
        command=attributes["command"],
        **more,
    )


def _named(option: str, given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Returns the values of an option NAME=VALUE by their names.

    Raises:
        ValueError: For a value without a name where there are several.
    """
    by_name = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            if len(names) != 1:
                raise ValueError(
                    f"{option} {text} does not say what it is for; give NAME={text}, with one of "
                    f"{', '.join(names)} as NAME."
                )
            name, value = names[0], text
        by_name[name] = value
    return by_name


def _named_paths(
    option: str, given: Sequence[str], names: Sequence[str]
) -> dict[str, pathlib.Path]:
    """Returns existing paths by their names.

    Raises:
        ValueError: For an unknown name, or a path that does not exist.
    """
    paths = {name: pathlib.Path(value) for name, value in _named(option, given, names).items()}
    for name, path in paths.items():
        if name not in names:
            raise ValueError(f"{option} knows {', '.join(names)}, not {name}.")
        if not path.exists():
            raise ValueError(f"{option} {name}={path}: there is no such file or folder.")
    return paths


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG of 256 colours, without date and version: reruns are identical."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    with Image.open(drawn) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    write_atomically(path, lambda name: small.save(name, format="PNG", optimize=True))


def save_json(value: object, path: pathlib.Path) -> None:
    """Writes strict JSON (no NaN)."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda name: name.write_text(text, encoding="utf-8"))


def print_findings(findings: Iterable[Finding]) -> None:
    """Prints a line for each finding and one for each of its criteria."""
    for finding in findings:
        head = f"{finding.claim} {finding.verdict} ({finding.network}, {finding.protocol})"
        print(f"{head}: {finding.reason}" if finding.verdict == NOT_TESTED else head)
        for criterion in finding.criteria:
            mark = {True: "+", False: "x", None: "-"}[criterion.holds]
            print(f"    {mark} {criterion}")


def has_random_weights(dataset: xr.Dataset) -> bool:
    """Tells whether the network of a task was never trained."""
    return dataset.attrs["network"].startswith(f"{dataset.attrs['model']} ({RANDOM}")


SMOKE_NOTE = "**A smoke run: its numbers mean nothing.**"
RANDOM_NOTE = (
    "**All networks here have random weights. Verdicts on this page say nothing about the paper's "
    "claims, which concern trained networks.** These runs show that the experiments run on the "
    "paper's networks, and what the methods do before anything is learned."
)


@dataclass(frozen=True)
class Paper:
    """All experiments of a paper.

    Args:
        name: Name of the package.
        title: Title of the paper.
        claims: Its claims.
        introduction: What the page of claims says before its table.
        differences: What it says about networks, data and settings of trained networks.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    introduction: str = ""
    differences: str = ""

    def experiments(self) -> dict[str, Experiment]:
        """Returns the experiments by name: every module of the package that has one."""
        package = importlib.import_module(f"experiments.{self.name}")
        experiments = {}
        for module in pkgutil.iter_modules(package.__path__):
            if module.name != "__main__":
                loaded = importlib.import_module(f"{package.__name__}.{module.name}")
                if isinstance(getattr(loaded, "EXPERIMENT", None), Experiment):
                    experiments[module.name] = loaded.EXPERIMENT
        return experiments

    def claim_table(self, findings: Iterable[Finding]) -> ClaimTable:
        """Returns the table of all claims."""
        return ClaimTable(self.claims, findings)

    def write(
        self, table: ClaimTable, out: pathlib.Path, *, tiny: bool = False, random: bool = False
    ) -> None:
        """Writes `claims.md` and `claims.json` into a folder.

        Args:
            table: The table of claims.
            out: The folder.
            tiny: Whether it is that of a smoke run.
            random: Whether all networks have random weights.
        """
        parts = [SMOKE_NOTE] if tiny else []
        parts += (
            [RANDOM_NOTE, self.introduction] if random else [self.introduction, self.differences]
        )
        where = ", on networks with random weights" if random else ""
        introduction = "\n\n".join(filter(None, parts))
        text = table.markdown(f"Claims of {self.title}{where}", introduction)
        write_atomically(out / "claims.md", lambda name: name.write_text(text, encoding="utf-8"))
        flags = {"tiny": tiny, "random_weights": random}
        save_json({**flags, **table.to_config()}, out / "claims.json")

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs all experiments from the command line and writes the table of claims.

        Returns:
            The exit status.
        """
        summary = f"All experiments of {self.title}: {', '.join(self.experiments())}."
        return run_paper(self._main, f"experiments.{self.name}", summary, argv)

    def _main(self, options: PaperOptions) -> None:
        experiments = self.experiments()
        if unknown := [name for name in options.only if name not in experiments]:
            raise typer.BadParameter(
                f"--only knows {', '.join(experiments)}, not {', '.join(unknown)}"
            )
        chosen = {name: experiments[name] for name in options.only or experiments}
        kinds = {kind for experiment in experiments.values() for kind in experiment.data}
        for given in options.data:
            if "=" in given and (kind := given.split("=")[0]) not in kinds:
                raise typer.BadParameter(f"--data knows {', '.join(sorted(kinds))}, not {kind}")
        out = options.out or OUTPUT / self.name
        folders = [out, *([options.results] if options.results else [])]
        if options.results and options.tiny:
            raise typer.BadParameter(
                "--results is not for smoke runs: leave out --tiny or --results"
            )
        of_experiments: dict[str, list[xr.Dataset]] = {}
        published: dict[str, list[Finding]] = {}
        for name, experiment in chosen.items():
            print(f"{name}: {experiment.summary}")
            if options.collect:
                of_experiments[name] = experiment.saved(out)
            else:
                own = _applicable(options, experiment)
                if own is None:
                    print("    left out: none of the named networks concerns it")
                    continue
                of_experiments[name], published[name] = experiment.run(experiment.request(own))
            print_findings(f for dataset in of_experiments[name] for f in experiment.judge(dataset))
        every = [dataset for datasets in of_experiments.values() for dataset in datasets]
        tiny = options.tiny or any(dataset.attrs["tiny"] for dataset in every)
        random = {has_random_weights(dataset) for dataset in every}
        if options.results and tiny:
            raise typer.BadParameter(f"--results is not for smoke runs, and {out} holds one")
        if options.results and len(random) == 2:
            raise typer.BadParameter(
                f"--results is for trained networks or for random ones; {out} holds both"
            )
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            findings: list[Finding] = []
            for name, datasets in of_experiments.items():
                if folder is out and name in published:
                    findings += published[name]
                elif datasets:
                    findings += chosen[name].publish(datasets, folder)
            self.write(self.claim_table(findings), folder, tiny=tiny, random=random == {True})
        print(f"The claims are in {folders[-1] / 'claims.md'}.")


def _applicable(options: Options, experiment: Experiment) -> Options | None:
    """Returns the options with those networks and data that an experiment knows.

    Returns:
        None if networks are named and none of them is known.
    """
    # A PATH alone stays, as an error that says what it lacks.
    data = [d for d in options.data if "=" not in d or d.split("=")[0] in experiment.data]
    known = {*experiment.models, *experiment.known_models}
    models = [model for model in options.models if model in known]
    if options.models and not models:
        return None
    return replace(options, models=models, data=data)
