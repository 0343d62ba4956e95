"""Inputs of a network without some of their pixels: inpainted, or replaced by a constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.checks import choice, integer, positive, real

if TYPE_CHECKING:
    from tfexplain.audits.case import Layout

FILLS = ("telea", "constant")
# Between x and preprocess(pixels), of the largest value of x: a quarter of one grey level.
ROUNDING = 1e-3


def removed_pixels(sizes: Sequence[int], fraction: float, steps: int) -> np.ndarray:
    """Returns how many pixels are removed at each step, from 0 on, (steps + 1,) at most.

    Args:
        sizes: Height and width.
        fraction: Part of the pixels that is removed in the end.
        steps: Number of steps at most.

    Raises:
        ValueError: For a wrong value.

    Example:
        >>> removed_pixels((28, 28), 0.05, 50)[[0, 1, -1]].tolist()
        [0, 1, 39]
    """
    if not 0 < real("fraction", fraction, 0) <= 1:
        raise ValueError(f"fraction must be in (0, 1], received {fraction!r}.")
    integer("steps", steps, 1)
    last = max(1, round(float(fraction) * sizes[0] * sizes[1]))
    return np.round(np.linspace(0, last, min(last, int(steps)) + 1)).astype("int64")


class Removal:
    """Makes inputs of the model without some pixels.

    Args:
        x: All samples.
        layout: How they are laid out.
        fill: See `pixel_flipping`, like the others.
        value: With pixels in their unit, else in that of x.
        radius: The radius of "telea".
        pixels: Images, or None.
        preprocess: Makes inputs of pixels, or None.

    Raises:
        ImportError: If "telea" lacks OpenCV.
        ValueError: For a wrong value, and where something is missing.
    """

    def __init__(
        self,
        x: np.ndarray,
        layout: Layout,
        fill: str,
        value: float,
        radius: float,
        pixels: Any,
        preprocess: Callable | None,
    ) -> None:
        choice("fill", fill, FILLS)
        if fill == "telea" and pixels is None:
            raise ValueError(
                'fill="telea" inpaints uint8 images: give pixels=... and preprocess=..., the '
                'function that makes x of them; or use fill="constant" with value=..., which works '
                "on x itself."
            )
        if fill == "telea" and (reason := without_opencv()):
            raise ImportError(f'fill="telea": {reason}, or use fill="constant" with value=....')
        if (pixels is None) != (preprocess is None):
            missing = "preprocess" if preprocess is None else "pixels"
            raise ValueError(
                f"pixels and preprocess belong together: x = preprocess(pixels). {missing} is "
                "missing."
            )
        if preprocess is not None and not callable(preprocess):
            raise ValueError(f"preprocess must be a function of pixels, received {preprocess!r}.")
        self.x, self.layout, self.fill = x, layout, fill
        self.value = real("value", value, -np.inf)
        self.radius = positive("radius", radius)
        self.pixels = None if pixels is None else self._images(pixels)
        self.preprocess: Any = preprocess
        if self.pixels is not None and not (self.value.is_integer() and 0 <= self.value <= 255):
            raise ValueError(
                f"value is that of uint8 pixels, an integer in 0..255, received {value!r}."
            )

    def _images(self, pixels: Any) -> np.ndarray:
        pixels = np.asarray(pixels)
        size = (len(self.x), *self.layout.sizes)
        if pixels.dtype != np.uint8 or pixels.shape not in (size, (*size, 1), (*size, 3)):
            raise ValueError(
                f"pixels must be uint8 of shape {size} or {(*size, '1 or 3')}, as x has it; "
                f"received {pixels.dtype} of shape {pixels.shape}."
            )
        return pixels

    def check(self, batch_size: int, removed: np.ndarray) -> None:
        """Compares x with what `preprocess` makes of the pixels, batch by batch.

        Raises:
            ValueError: If they differ by more than rounding, or no pixel is left to inpaint from.
        """
        if self.fill == "telea" and removed[-1] == np.prod(self.layout.sizes):
            raise ValueError(
                'fill="telea" inpaints from the pixels that are left, and fraction removes all '
                f"{removed[-1]} of them; choose a smaller fraction."
            )
        if self.pixels is None:
            return
        from tfexplain.analyzers.arrays import slices

        scale = np.abs(self.x).max()
        for part in slices(len(self.x), batch_size):
            made = self._preprocessed(self.pixels[part].copy())
            if made.shape != self.x[part].shape:
                raise ValueError(
                    f"preprocess(pixels) has shape {made.shape}, x has {self.x[part].shape}."
                )
            error = np.abs(made - self.x[part]).max()
            if not error <= ROUNDING * scale:
                raise ValueError(
                    f"x is not preprocess(pixels): they differ by {error:.3g}, and the largest "
                    f"value of x is {scale:.3g}. Give the pixels that x was made of, or "
                    "x=preprocess(pixels)."
                )

    def _preprocessed(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(self.preprocess(pixels))

    def options(self) -> dict[str, Any]:
        """Returns what the numbers depend on; the checked x stands for `preprocess`."""
        options: dict[str, Any] = {"fill": self.fill, "pixels": int(self.pixels is not None)}
        options |= {"radius": self.radius} if self.fill == "telea" else {"value": self.value}
        if self.pixels is not None:
            from tfexplain.runs import digest

            options["pixels_sha256"] = digest([self.pixels])
        return options

    def versions(self) -> dict[str, str]:
        """Returns the version of OpenCV where it is used."""
        if self.fill != "telea":
            return {}
        import cv2

        return {"opencv": cv2.__version__}

    def inputs(self, position: int, order: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """Returns inputs of the model, (step, *input_shape).

        Args:
            position: The position of the sample.
            order: Flat places of pixels, in which they are removed.
            removed: How many of them are removed at each step.
        """
        masks: np.ndarray = np.zeros((len(removed), order.size), bool)
        for mask, count in zip(masks, removed, strict=True):
            mask[order[:count]] = True
        masks = masks.reshape(len(removed), *self.layout.sizes)
        if self.pixels is not None:
            image = self.pixels[position]
            return self._preprocessed(np.stack([self._filled(image, mask) for mask in masks]))
        masks = np.expand_dims(masks, 1 if self.layout.channel_axis == 0 else -1)
        return np.where(masks, self.x.dtype.type(self.value), self.x[position])

    def _filled(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Returns an image (height, width) or (height, width, channels) without masked pixels."""
        if self.fill == "constant":
            filled = image.copy()
            filled[mask] = int(self.value)
            return filled
        import cv2

        flat = image[..., 0] if image.shape[2:] == (1,) else image
        flat = np.ascontiguousarray(flat)
        filled = cv2.inpaint(flat, mask.astype("uint8"), self.radius, cv2.INPAINT_TELEA)
        return filled.reshape(image.shape)


def check_pixels(
    x: np.ndarray,
    layout: Layout,
    pixels: Any,
    preprocess: Callable[[np.ndarray], Any] | None,
    batch_size: int,
) -> None:
    """Refuses pixels of which x was not made.

    Args:
        x: The checked samples.
        layout: How they are laid out.
        pixels: See `pixel_flipping`.
        preprocess: See `pixel_flipping`.
        batch_size: Samples that are computed together.

    Raises:
        ValueError: If one of the two is missing or wrong, or x is not `preprocess(pixels)`.
    """
    removal = Removal(x, layout, "constant", 0.0, 1.0, pixels, preprocess)
    removal.check(batch_size, np.zeros(1, int))


def without_opencv() -> str:
    """Returns why nothing can be inpainted here, and how to change that; empty if it can."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        return (
            f"inpainting needs OpenCV, which cannot be imported ({error}): run pip install "
            '"tfexplain[inpainting]"'
        )
    return ""
