"""An audit of your own: how much of the relevance lies at the border of an image?

`Border` takes part in `tfexplain.audit`, on the page and in the verdict, as those of tfexplain do.

    python custom_audit.py

audits four methods on the network of `tfexplain demo` and writes the folder `custom_audit`, with
`report.html`.
"""

from __future__ import annotations

import argparse
import pathlib
from dataclasses import dataclass

import numpy as np
import xarray as xr

import tfexplain
from tfexplain import audits, demo, plotting


def judged(dataset: xr.Dataset, method: str, thresholds: audits.Thresholds) -> audits.Cell:
    """The cell of a method in the verdict."""
    share = float(dataset["border"].sel(analyzer=method).median())
    passed = share < 0.5
    return audits.Cell("inside" if passed else "at the border", share, passed=passed)


@audits.register
@dataclass(frozen=True)
class Border(audits.Audit):
    """Which part of the magnitudes of a map lies within `width` pixels of the border."""

    name = "border"
    title = "Relevance at the border"
    question = "Does a map point at the border, where the digits are not?"
    checks = (
        audits.Check("border", "Looks inside", "Less than half.", judged, decides=True, head="in"),
    )
    width: int = 1

    def measure(self, work, block, advance):
        """Returns the shares of a block of samples, (analyzer, sample)."""
        shares, inside = [], slice(self.width, -self.width)
        for name in work.case.analyzers:
            maps = np.abs(work.case.maps(name, block, "sum"))
            shares.append(1 - maps[:, inside, inside].sum((1, 2)) / maps.sum((1, 2)))
            advance()
        return {"border": np.array(shares)}

    def combine(self, work, blocks):
        """Joins the blocks; settings and versions become attributes by themselves."""
        shares = np.concatenate([block["border"] for block in blocks], axis=1)
        names = list(work.case.analyzers)
        return xr.Dataset({"border": (("analyzer", "sample"), shares)}, {"analyzer": names})

    @classmethod
    def draw(cls, dataset, labels):
        """A box per method."""
        label = "share of the relevance at the border"
        boxes = audits.Drawing(lambda d: plotting.boxes(d["border"], label), label, "0: inside.")
        return [boxes]


def main(arguments: list[str] | None = None) -> tfexplain.report.Outcome:
    """Audits the demo's network; prints the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), metavar="FOLDER")
    out = parser.parse_args(arguments).out / "custom_audit"
    _, (x, y) = demo.load_digits()
    model = demo.network()
    methods = ["gradient", "lrp.epsilon", "lrp.z_plus", "lrp.flat"]
    chosen = {"methods": methods, "audits": ["examples", "border"], "preset": "quick"}
    outcome = tfexplain.audit(model, x, y, folder=out, **chosen)
    print(outcome.verdict())
    print(f"{out}: report.html, verdict.json, results/border.nc")
    return outcome


if __name__ == "__main__":
    main()
