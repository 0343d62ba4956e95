"""Times zennit's composites on VGG-16 against the model's own forward pass in the same process.

Runs where torch and zennit are installed (any environment). Prints a JSON line per composite.
"""

import argparse
import importlib.util
import json
import sys
import time
import types

import torch

if importlib.util.find_spec("torchvision") is None:
    # zennit imports torchvision for canonizers of ResNets, which nothing here uses.
    for name in ("torchvision", "torchvision.models", "torchvision.models.resnet"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.models.resnet"].Bottleneck = torch.nn.Module
    sys.modules["torchvision.models.resnet"].BasicBlock = torch.nn.Module

from zennit.attribution import Gradient
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus

WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg16() -> torch.nn.Module:
    """Returns VGG-16 with random weights, without torchvision."""
    layers, channels = [], 3
    for width in WIDTHS:
        if width == "M":
            layers.append(torch.nn.MaxPool2d(2))
            continue
        layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
        channels = width
    layers += [torch.nn.Flatten(), torch.nn.Linear(25088, 4096), torch.nn.ReLU()]
    layers += [torch.nn.Linear(4096, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1000)]
    return torch.nn.Sequential(*layers).eval()


def main() -> None:
    """Measures each composite, and right after it the forward pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = vgg16()
    x = torch.rand(arguments.batch, 3, 224, 224) * 250 - 120
    low, high = torch.full_like(x[:1], -150.0), torch.full_like(x[:1], 152.0)
    composites = {
        "gradient": None,
        "epsilon_plus": EpsilonPlus(),
        "epsilon_alpha2_beta1": EpsilonAlpha2Beta1(),
        "epsilon_gamma_box": EpsilonGammaBox(low=low, high=high),
    }
    start_relevance = torch.eye(1000)[[3] * arguments.batch]

    def timed(function) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def forward() -> None:
        with torch.no_grad():
            model(x)

    forward()
    for name, composite in composites.items():
        with Gradient(model=model, composite=composite) as attributor:

            def explain(attributor=attributor) -> None:
                attributor(x.clone(), start_relevance)

            first = timed(explain)
            later = [timed(explain) for _ in range(arguments.repeats)]
        # Outside the context, where no hook slows the model.
        base = min(timed(forward) for _ in range(arguments.repeats))
        row = {"peer": "zennit", "analyzer": name, "first_s": first, "later_s": min(later)}
        print(json.dumps({**row, "forward_s": base, "ratio": min(later) / base}), flush=True)


if __name__ == "__main__":
    main()
