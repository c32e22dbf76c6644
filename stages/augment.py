"""Views of a picture: what a random crop and a mirror make of it, drawn from the picture and the number of the view.

A view never depends on where a picture lies in the data or in the store, so it stays the same when the store grows.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from ..storage.errors import RecipeError
from ..storage.nearest import did_you_mean

if TYPE_CHECKING:
    from PIL import Image

_SIDES: Final = (3 / 4, 4 / 3)
"""Width over height of a crop, at least and at most."""


@dataclass(frozen=True)
class Augment:
    """What is done to every view but the first, which is the picture as it is.

    flip: mirror left and right, one time in two. crop: cut out a part of at least this share of the area, of a ratio of
    sides between 3:4 and 4:3 (Szegedy et al. 2015, arXiv:1409.4842); the image processor then gives it the model's size.
    """

    flip: bool = False
    crop: float | None = None

    @classmethod
    def parse(cls, text: str) -> Augment:
        """`flip`, `crop:SHARE` or both with a plus between, in any order. Raises RecipeError."""
        flip, crop = False, None
        for word in text.split("+"):
            name, _, share = word.strip().partition(":")
            if name == "flip" and not share and not flip:
                flip = True
            elif name == "crop" and crop is None and (found := _share(share)) is not None:
                crop = found
            else:
                hint = "" if name in ("flip", "crop") else did_you_mean(name, ("flip", "crop"))
                raise RecipeError(
                    f"augment {text!r}: {word.strip()!r} is not known{hint}; give flip, crop:SHARE (0 < SHARE <= 1, the "
                    "least share of the area that is kept) or both, as in flip+crop:0.5"
                )
        return cls(flip, crop)

    @property
    def name(self) -> str:
        """The one form that `parse` reads it in."""
        return "+".join([*(["flip"] if self.flip else []), *([] if self.crop is None else [f"crop:{self.crop:g}"])])

    def __call__(self, image: Image.Image, digest: str, view: int, seed: int) -> Image.Image:
        """View number `view` (from 1; 0 is the picture itself) of the picture whose bytes have this digest."""
        from PIL import ImageOps

        if view == 0:
            return image
        chance = Random(int.from_bytes(hashlib.sha256(f"{seed} {view} {digest}".encode()).digest()))
        # `random()` is the one method whose sequence Python promises to keep
        area, sides, left, top, mirror = (chance.random() for _ in range(5))
        if self.crop is not None:
            image = image.crop(_box(image.width, image.height, self.crop, area, sides, left, top))
        if self.flip and mirror < 0.5:
            image = ImageOps.mirror(image)
        return image


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def _box(
    width: int, height: int, least: float, area: float, sides: float, left: float, top: float
) -> tuple[int, int, int, int]:
    """The edges of a crop, from five numbers between 0 and 1."""
    pixels = width * height * (least + (1 - least) * area)
    ratio = math.exp(math.log(_SIDES[0]) + sides * math.log(_SIDES[1] / _SIDES[0]))
    wide = min(max(round(math.sqrt(pixels * ratio)), 1), width)
    high = min(max(round(pixels / wide), 1), height)
    x, y = int(left * (width - wide + 1)), int(top * (height - high + 1))
    return x, y, x + wide, y + high
