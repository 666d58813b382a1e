"""Image files to pixels, by Pillow.

Only formats whose decoders read pixels and nothing else are allowed: no PostScript, no plug-in that starts a program.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itrd.errors import DataError, UserError, first_line
from itrd.extras import require

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on lie on their side
_CHECK_SIDE = 64  # pixels; a JPEG that is only checked is decoded at a fraction of its size


class CorruptImageError(DataError):
    """An image that cannot be decoded."""


def decode(source: Path | bytes, name: str) -> Tensor:
    """Return the pixels of an encoded image as red, green, blue: uint8 (3, H, W).

    Upright as its EXIF orientation says. Grey, palette and CMYK images are converted, transparency is dropped, of 16
    bits the upper 8 are kept; of several frames the first is taken.

    Raises:
        CorruptImageError: it is damaged, too large to be an honest image, or of another format.
    """
    try:
        with _opened(source) as image:
            return to_tensor(require("PIL.ImageOps", "images").exif_transpose(image))
    except Exception as error:  # of damaged files decoders raise anything: OSError, struct.error, IndexError
        raise _corrupt(name, error) from None


def to_tensor(image: Any) -> Tensor:
    """Return the pixels of a Pillow image, uint8 (3, H, W), in channels-last order of memory.

    Raises:
        ValueError: its pixels are floating-point numbers, whose range is unknown.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip them to 8
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return torch.from_numpy(np.repeat(grey[..., None], 3, axis=2)).permute(2, 0, 1)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def check(source: Path | bytes, name: str) -> None:
    """Decode an image to see whether it can be; a JPEG at reduced size, which reads all of it in less time.

    Raises:
        CorruptImageError: it cannot be decoded.
    """
    try:
        with _opened(source) as image:
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers")
            image.draft("RGB", (_CHECK_SIDE, _CHECK_SIDE))
            image.load()
            image.getexif()
    except Exception as error:  # see decode
        raise _corrupt(name, error) from None


def size_of(source: Path | bytes, name: str) -> tuple[int, int]:
    """Return height and width as shown, from the file's header alone.

    Raises:
        CorruptImageError: it has no readable header.
    """
    try:
        with _opened(source) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(_ORIENTATION, 1) >= 5 else (height, width)
    except Exception as error:  # see decode
        raise _corrupt(name, error) from None


def _opened(source: Path | bytes) -> Any:
    image = require("PIL.Image", "images")
    return image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _corrupt(name: str, error: Exception) -> UserError:
    if isinstance(error, UserError):  # Pillow is not installed, for one
        return error
    reason = first_line(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return DataError(f"cannot read {name}: {reason}")  # says nothing of the image, and may pass
    if "cannot identify image file" in reason:
        reason = f"no image of a known format ({', '.join(FORMATS)})"
    return CorruptImageError(f"cannot decode {name}: {reason}; replace or remove it")
