"""The command `tfexplain`, also `python -m tfexplain`."""

from tfexplain.cli import app


def main() -> None:
    """Runs the command line and exits with its status."""
    app(prog_name="tfexplain")


if __name__ == "__main__":
    main()
