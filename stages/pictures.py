"""Encoded pictures -> upright RGB, or the reason why not, with the picture's name."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np

from ..storage.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from .sources.contract import Picture

FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read. Pillow knows more; some of those start other programs."""
_PLAIN_MODES: Final = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}
)
"""Modes of eight bits a channel, or fewer, which Pillow turns into RGB without loss of range."""


def require_pillow(why: str) -> None:
    """Raises UsageError, which begins with `why`, where Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise UsageError(f"{why} and Pillow is not installed; pip install 'sherl-cache[vision]' installs it") from None


def check(picture: Picture, data: bytes) -> None:
    """Look at a picture's header. Raises DataError where it is none that can be read, or has more pixels than Pillow's
    limit on decompression bombs. Changes the filter of warnings for a moment, so it is not for threads.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        _opened(picture, data)


def decode(picture: Picture, data: bytes) -> Image.Image:
    """The picture as RGB, turned as its orientation tag says; of an animation the first frame. Alpha is dropped, grey
    is repeated, 16-bit grey loses its lower byte. It has passed `check`.

    Raises DataError where it cannot be decoded.
    """
    from PIL import Image, ImageOps

    image = _opened(picture, data)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode not in _PLAIN_MODES:
            raise DataError(
                f"{picture.name}: its pixels have the mode {image.mode!r}, whose range is not known; save it as RGB or "
                "grey of 8 or 16 bits"
            )
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(picture, error) from None


def _opened(picture: Picture, data: bytes) -> Image.Image:
    from PIL import Image

    if not data:
        raise DataError(f"{picture.name}: the file is empty; a picture is wanted")
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{picture.name}: the picture has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which may be a decompression "
            "bomb; save it smaller"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(picture, error) from None


def _unreadable(picture: Picture, error: Exception) -> DataError:
    said = " ".join(str(error).split())
    if "cannot identify image file" in said:
        said = f"not one of {', '.join(FORMATS)}"
    return DataError(f"{picture.name}: cannot be decoded as a picture ({said}); replace it or take it out")
