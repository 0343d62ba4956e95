"""Builds and installs tfexplain; the tools are configured in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "pydmd>=2024.12",
    "ruff>=0.6",
    "setuptools>=70.1",
]

setup(
    name="tfexplain",
    version="0.1.0",
    description="Explain Keras 3 models with reversed networks: LRP, Deep Taylor, gradients",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["tfexplain", "tfexplain.*"]),
    # The page of a report; the network that comes with the library, and how it was trained.
    package_data={"tfexplain": ["**/*.jinja", "trained/*"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        "keras>=3.10",
        "tensorflow>=2.18",
        "numpy>=1.26",
        "scipy>=1.11.1",
        "scikit-image>=0.22",
        "opencv-python-headless>=4.10.0.84",
        "xarray>=2024.1",
        "h5netcdf>=1.3",
        "matplotlib>=3.8",
        "pillow>=10",
        "scikit-learn>=1.4",
        "typer>=0.16",
        "rich>=13",
        "jinja2>=3.1",
    ],
    extras_require={"test": TEST},
    entry_points={"console_scripts": ["tfexplain=tfexplain.__main__:main"]},
)
