"""The audits by name: what `tfexplain.audit`, the page, the verdict and the help go through."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping

from tfexplain.audits.base import PRESETS, Audit
from tfexplain.audits.judging import Check
from tfexplain.checks import frozen
from tfexplain.errors import nearest

# In the order in which they run and stand on the page.
AUDITS: dict[str, type[Audit]] = {}


def register(cls: type[Audit]) -> type[Audit]:
    """Enters an audit in `AUDITS`; to be used as a decorator.

    Args:
        cls: A frozen dataclass, a subclass of `Audit` with a name, a title and a question.

    Returns:
        The class.

    Raises:
        TypeError: If it is something else, or a preset cannot be written as JSON.
        ValueError: If something is missing, a field has the name of a setting that every run has,
            a preset is unknown or has an option that is no field, or another audit has its name or
            that of a check.
    """
    if not (isinstance(cls, type) and issubclass(cls, Audit)):
        raise TypeError(f"An audit is a subclass of tfexplain.audits.Audit, received {cls!r}.")
    if "__dataclass_params__" not in vars(cls) or not vars(cls)["__dataclass_params__"].frozen:
        raise TypeError(
            f"{cls.__name__} must be a frozen dataclass, whose fields are its options: decorate it "
            "with @dataclass(frozen=True) below @register."
        )
    cls.check_fields()
    lacking = [key for key in ("name", "title", "question") if not getattr(cls, key, "")]
    needed = ("measure", "combine") if cls.by_samples else ("compute",)
    lacking += [key for key in needed if getattr(cls, key) is getattr(Audit, key)]
    if lacking:
        raise ValueError(f"The audit {cls.__name__} lacks {', '.join(lacking)}.")
    _check_presets(cls)
    # As its name is that of a file and of an argument, and defined again in a notebook it is new.
    if not cls.name.isidentifier():
        raise ValueError(f"The name of an audit is an identifier, received {cls.name!r}.")
    known = AUDITS.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise ValueError(f"There is an audit {cls.name!r} already: {known.__qualname__}.")
    taken = {check.name for check, owner in all_checks() if owner is not known}
    if repeated := [check.name for check in cls.checks if check.name in taken]:
        raise ValueError(f"Another audit has the check(s) {', '.join(repeated)} already.")
    AUDITS[cls.name] = cls
    return cls


def _check_presets(cls: type[Audit]) -> None:
    for preset, settings in cls.presets.items():
        if preset not in PRESETS:
            raise ValueError(
                f"The audit {cls.__name__} has the preset {preset!r}."
                f"{nearest(preset, PRESETS)} Presets: {', '.join(PRESETS)}."
            )
        try:
            json.dumps({key: frozen(value) for key, value in settings.items()})
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"The preset {preset!r} of the audit {cls.__name__} cannot be written as JSON "
                f"({error}): {settings!r}."
            ) from error
        # One of its own reads what it likes.
        makes_itself = inspect.getattr_static(cls, "for_case") is not vars(Audit)["for_case"]
        fields = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in settings if key not in {*fields, "samples"}]
        if unknown and not makes_itself:
            raise ValueError(
                f"The preset {preset!r} of the audit {cls.__name__} sets {', '.join(unknown)}, "
                f"which is no field.{nearest(unknown[0], fields)} Fields: "
                f"{', '.join(fields) or 'none'}; samples limits their number."
            )


def in_reports() -> Mapping[str, type[Audit]]:
    """Returns the audits that take part in a report."""
    return {name: cls for name, cls in AUDITS.items() if cls.in_report}


def all_checks() -> list[tuple[Check, type[Audit]]]:
    """Returns the checks of the verdict with the audits that answer them, those that decide first.

    Example:
        >>> [check.name for check, _ in all_checks() if check.decides]
        ['last_layers', 'class', 'directions']
    """
    pairs = [(check, cls) for cls in in_reports().values() for check in cls.checks]
    return sorted(pairs, key=lambda pair: not pair[0].decides)
