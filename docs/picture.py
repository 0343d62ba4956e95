"""Makes the pictures of the README: `python -m docs.picture`.

`digits.png` has three digits and a few methods; `first.png` is what the README's first lines of
Python make, which are run for it.
"""

import os
import pathlib
import re
import shutil
import tempfile

import tfexplain

FOLDER = pathlib.Path(__file__).parent
README = FOLDER.parent / "README.md"
METHODS = (
    "gradient",
    "guided_backprop",
    "integrated_gradients",
    "lrp.epsilon",
    "lrp.alpha_1_beta_0",
    "lrp.alpha_2_beta_1",
    "deep_taylor",
    "excitation_bp.contrastive",
)
DIGITS = [0, 3, 7]


def compared() -> None:
    """Draws three digits and a few methods into docs/digits.png."""
    model, (x, y) = tfexplain.demo.network(), tfexplain.demo.digits()
    x, y = x[DIGITS], y[DIGITS]
    maps = {name: tfexplain.create_analyzer(name, model).analyze(x, y) for name in METHODS}
    tfexplain.plotting.maps(x, maps).savefig(FOLDER / "digits.png", dpi=90)


def first() -> None:
    """Runs the README's first lines of Python, and keeps their picture as docs/first.png."""
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(code, {})
            shutil.copy("maps.png", FOLDER / "first.png")
        finally:
            os.chdir(before)


if __name__ == "__main__":
    compared()
    first()
