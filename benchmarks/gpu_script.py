"""Runs lowered programs with JAX, and other libraries with PyTorch, on one GPU.

    python gpu_script.py > rows.jsonl

It stands alone, so that it runs where TensorFlow is missing: `python -m benchmarks.gpu --folder`
copies it beside the programs and their `manifest.json`. First the programs of a tiny network have
to return what tfexplain returned for them. Then each row is printed as a line of JSON when it is
there: libraries on PyTorch first, then the programs. What is not installed, and what a library
refuses, gets a row that says so. Each part runs in a process of its own, because each framework
takes memory of the card for itself.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator

PARTS = ("check", "captum", "zennit", "programs")
WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
# Of the largest value of a result: kernels of float32 differ by some 1e-5 at most, TF32 by 1e-3.
TOLERANCE = 1e-4


def measured(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Returns the time of the first call in seconds, and of later ones in milliseconds.

    Args:
        function: Returns when the device has finished.
        repeats: How many later calls there are.
    """
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    first, *later = seconds
    later.sort()
    median = later[len(later) // 2]
    return {"first_s": first, "ms": 1000 * later[0], "median_ms": 1000 * median}


def now(device: str, versions: str) -> dict[str, str]:
    """Returns what every row says of its measurement."""
    return {"device": device, "date": datetime.date.today().isoformat(), "versions": versions}


def message(error: Exception) -> str:
    """Returns an error in one line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


# --- programs ---


class Programs:
    """The programs of a folder, on the first device of JAX."""

    def __init__(self, folder: pathlib.Path) -> None:
        import jax

        self.folder, self.device = folder, jax.devices()[0]
        self.rows = json.loads((folder / "manifest.json").read_text())["programs"]
        self.measurement = now(self.device.device_kind, f"jax {jax.__version__}")

    def executable(self, file: str):
        """Returns a compiled program, a function of the list of its arguments."""
        from jaxlib import xla_client

        computation = xla_client.XlaComputation((self.folder / file).read_bytes())
        module = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
        devices = xla_client.DeviceList((self.device,))
        return self.device.client.compile_and_load(module, devices, xla_client.CompileOptions())

    def drawn(self, argument: dict, index: int):
        """Returns random numbers for an argument: speed does not depend on values."""
        import jax

        low, high = argument["low"], argument["high"]
        if low == high:
            return jax.numpy.full(argument["shape"], low, argument["dtype"])
        key = jax.random.key(index)
        return jax.random.uniform(key, argument["shape"], argument["dtype"], low, high)

    def check(self) -> None:
        """Compares results with those that are stored beside the programs.

        Raises:
            SystemExit: If any differs by more than rounding, or there is none.
        """
        import jax
        import numpy as np

        stored = [row for row in self.rows if row["values"]]
        if not stored:
            sys.exit("The folder has no program whose results are known.")
        largest = 0.0
        for row in stored:
            with np.load(self.folder / row["values"]) as values:
                arguments = [
                    jax.device_put(values[f"argument_{index}"], self.device)
                    for index in range(len(row["arguments"]))
                ]
                expected = [values[name] for name in values.files if name.startswith("output_")]
            results = self.executable(row["file"]).execute(arguments)
            if len(results) != len(expected):
                sys.exit(f"{row['file']} has {len(results)} results, expected {len(expected)}.")
            for result, right in zip(map(np.asarray, results), expected, strict=True):
                if result.shape != right.shape or not np.abs(right).max() > 0:
                    sys.exit(f"{row['file']}: {result.shape} against {right.shape}, or all is 0.")
                error = float(np.abs(result - right).max() / np.abs(right).max())
                if not error <= TOLERANCE:
                    sys.exit(f"{row['file']} is off by {error:.1e} of its largest value.")
                largest = max(largest, error)
        line = f"{len(stored)} programs return what they should, to {largest:.1e}"
        print(f"{line}, on {self.device.device_kind}.", file=sys.stderr, flush=True)

    def measure(self, repeats: int) -> Iterator[dict]:
        """Times the programs that are no checks; a row for each."""
        import jax

        weights: dict[str, dict] = {}
        for row in self.rows:
            if row["values"]:
                continue
            # All programs of a network have the same weights.
            known = weights.setdefault(row["model"], {})
            shown = {name: row[name] for name in ROW} | self.measurement
            try:
                arguments = []
                for index, argument in enumerate(row["arguments"]):
                    name = argument["name"]
                    if not argument["weight"]:
                        arguments.append(self.drawn(argument, index))
                        continue
                    if name not in known:
                        known[name] = self.drawn(argument, index)
                    arguments.append(known[name])
                jax.block_until_ready(arguments)
                start = time.perf_counter()
                execute = self.executable(row["file"]).execute
                compiled = time.perf_counter() - start

                def run(execute=execute, arguments=arguments) -> None:
                    jax.block_until_ready(execute(arguments))

                times = measured(run, repeats)
                yield {**shown, **times, "first_s": compiled + times["first_s"]}
            except jax.errors.JaxRuntimeError as error:
                # Such as too little memory; the others go on.
                yield {**shown, "failure": message(error)}


# What a row says of its program.
ROW = ("library", "model", "what", "batch", "size", "vectors", "tf32")


# --- networks of PyTorch ---


def vgg16(size: int, add=None):
    """Returns VGG-16 of Keras with random weights, to logits.

    Args:
        size: Height and width of the images.
        add: Not needed: nothing is added.
    """
    import torch
    from torch import nn

    layers, channels = [], 3
    for width in WIDTHS:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(*layers)
            self.head = nn.Sequential(
                nn.Linear(512 * (size // 32) ** 2, 4096),
                nn.ReLU(),
                nn.Linear(4096, 4096),
                nn.ReLU(),
                nn.Linear(4096, 1000),
            )

        def forward(self, x):
            # A layer that flattens is one that captum has no rule for.
            return self.head(torch.flatten(self.features(x), 1))

    return Network().eval()


def resnet50(size: int, add: Callable):
    """Returns ResNet-50 of Keras (strides in the first convolutions, biases), to logits.

    Args:
        size: Not needed: any size has the same weights.
        add: Makes a module that adds two tensors, as a library wants it.
    """
    import torch
    from torch import nn

    def normed(channels: int, width: int, kernel: int, stride: int = 1) -> list:
        convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)
        return [convolution, nn.BatchNorm2d(width, eps=1.001e-5)]

    class Block(nn.Module):
        def __init__(self, channels: int, width: int, stride: int, widens: bool) -> None:
            super().__init__()
            self.skip = nn.Sequential(*normed(channels, 4 * width, 1, stride)) if widens else None
            self.branch = nn.Sequential(
                *normed(channels, width, 1, stride),
                nn.ReLU(),
                *normed(width, width, 3),
                nn.ReLU(),
                *normed(width, 4 * width, 1),
            )
            self.add, self.relu = add(), nn.ReLU()

        def forward(self, x):
            skipped = x if self.skip is None else self.skip(x)
            return self.relu(self.add(skipped, self.branch(x)))

    layers = [*normed(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    channels = 64
    for stage, (width, number) in enumerate(STAGES):
        for block in range(number):
            stride = 2 if stage and not block else 1
            layers.append(Block(channels, width, stride, not block))
            channels = 4 * width

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
            self.head = nn.Linear(2048, 1000)

        def forward(self, x):
            return self.head(torch.flatten(self.features(x), 1))

    return Network().eval()


NETWORKS = {"vgg16": vgg16, "resnet50": resnet50}


def zennit_methods(torch) -> tuple[Callable, Callable]:
    """Returns how zennit adds, and its methods: (network, x, start) -> name and function."""
    if importlib.util.find_spec("torchvision") is None:
        # zennit imports torchvision for networks of it, which nothing here uses.
        for name in ("torchvision", "torchvision.models", "torchvision.models.resnet"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.models.resnet"].Bottleneck = torch.nn.Identity
        sys.modules["torchvision.models.resnet"].BasicBlock = torch.nn.Identity
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus
    from zennit.layer import Sum

    class Add(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum = Sum()

        def forward(self, x, y):
            return self.sum(torch.stack([x, y], dim=-1))

    def methods(network, x, start) -> Iterator[tuple[str, Callable]]:
        low, high = torch.full_like(x[:1], -150.0), torch.full_like(x[:1], 152.0)
        canonizers = [SequentialMergeBatchNorm()]
        composites = {
            "gradient": None,
            "epsilon_plus": EpsilonPlus(canonizers=canonizers),
            "epsilon_alpha2_beta1": EpsilonAlpha2Beta1(canonizers=canonizers),
            "epsilon_gamma_box": EpsilonGammaBox(low=low, high=high, canonizers=canonizers),
        }
        for name, composite in composites.items():
            with Gradient(model=network, composite=composite) as attributor:
                yield name, lambda attributor=attributor: attributor(x.clone(), start)

    return Add, methods


def captum_methods(torch) -> tuple[Callable, Callable]:
    """Returns how captum adds, and its methods: (network, x, start) -> name and function."""
    from captum.attr import LRP, DeepLift, Saliency
    from captum.attr._utils.custom_modules import Addition_Module

    def methods(network, x, start) -> Iterator[tuple[str, Callable]]:
        target = start.argmax(dim=1)
        for name, method in (("gradient", Saliency), ("lrp", LRP), ("deep_lift", DeepLift)):

            def explain(method=method):
                return method(network).attribute(x.clone().requires_grad_(), target=target)

            yield name, explain

    return Addition_Module, methods


PEERS = {"zennit": zennit_methods, "captum": captum_methods}


def measure_peer(library: str, settings: argparse.Namespace) -> Iterator[dict]:
    """Times a library on PyTorch; a row for each of its methods, and for the forward pass."""
    missing = [name for name in ("torch", library) if importlib.util.find_spec(name) is None]
    if missing:
        yield {"library": library, "failure": f"{' and '.join(missing)} not installed"}
        return
    import torch

    # As TensorFlow and XLA compute by default; and the quickest kernels.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    add, methods = PEERS[library](torch)
    version = importlib.metadata.version(library)
    measurement = now(
        torch.cuda.get_device_name() if has_gpu else "cpu",
        f"torch {torch.__version__}, {library} {version}",
    )
    for model in settings.models:
        network = NETWORKS[model](settings.size, add).to(device)
        x = torch.rand(settings.batch, 3, settings.size, settings.size, device=device) * 270 - 120
        start = torch.eye(1000, device=device)[[3] * settings.batch]

        def forward(network=network, x=x) -> None:
            with torch.no_grad():
                network(x)

        def timed(what: str, function: Callable, model: str = model) -> dict:
            def run() -> None:
                function()
                if has_gpu:
                    torch.cuda.synchronize()

            row = {"library": library, "model": model, "what": what, "batch": settings.batch}
            row |= {"size": settings.size, "vectors": 1, "tf32": settings.tf32, **measurement}
            try:
                return {**row, **measured(run, settings.repeats)}
            except (RuntimeError, TypeError, AssertionError) as error:
                # What a library has no rule for, or too little memory.
                return {**row, "failure": message(error)}

        yield timed("forward", forward)
        for what, function in methods(network, x, start):
            yield timed(what, function)


# --- the command ---


def settings_of(arguments: argparse.Namespace) -> argparse.Namespace:
    """Returns the options, where they are not given those of the manifest."""
    path = arguments.folder / "manifest.json"
    known = json.loads(path.read_text())["settings"] if path.exists() else {}
    for name, value in known.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    needed = ("models", "batch", "size", "tf32")
    missing = [name for name in needed if getattr(arguments, name) is None]
    if missing:
        sys.exit(f"There is no {path}: {', '.join(f'--{name}' for name in missing)} are needed.")
    return arguments


def run_part(part: str, settings: argparse.Namespace) -> None:
    """Runs one part in this process and prints its rows."""
    if part == "check":
        Programs(settings.folder).check()
        return
    if part == "programs":
        rows = Programs(settings.folder).measure(settings.repeats)
    else:
        rows = measure_peer(part, settings)
    for row in rows:
        print(json.dumps(row), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Runs the parts one after the other, and ends in time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--folder", type=pathlib.Path, default=here, help="the programs")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together")
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), help="for PyTorch")
    parser.add_argument("--batch", type=int, help="for PyTorch")
    parser.add_argument("--size", type=int, help="for PyTorch")
    tf32 = argparse.BooleanOptionalAction
    parser.add_argument("--tf32", action=tf32, help="for PyTorch; by default as the programs")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(given)
    if arguments.one:
        run_part(arguments.parts[0], settings_of(arguments))
        return
    end, failed = time.monotonic() + arguments.seconds, []
    for part in arguments.parts:
        # What is given last counts.
        command = [sys.executable, __file__, *given, "--one", "--parts", part]
        try:
            code = subprocess.run(command, timeout=max(1.0, end - time.monotonic())).returncode
        except subprocess.TimeoutExpired:
            print(f"The part {part} was stopped: the time is over.", file=sys.stderr, flush=True)
            code = 1
        if code and part == "check":
            sys.exit(
                "The programs were not found to compute what they should; nothing is measured."
            )
        if code:
            failed.append(part)
    if failed:
        sys.exit(f"These parts failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
