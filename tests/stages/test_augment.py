"""Views: drawn from the picture and its number alone, and doing what their names say."""

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import picture

from sherl_cache.stages.augment import Augment
from sherl_cache.storage.errors import RecipeError


@pytest.mark.parametrize("text", ["flip", "crop:0.5", "flip+crop:0.08", "crop:1"])
def test_name_is_read_back(text: str) -> None:
    assert Augment.parse(text).name == text


def test_order_and_form_do_not_matter() -> None:
    assert Augment.parse(" crop:0.50+flip ") == Augment.parse("flip+crop:.5")


@pytest.mark.parametrize(
    "text", ["", "turn", "flip+flip", "flip:2", "crop", "crop:0", "crop:1.5", "crop:nan", "flip,crop:1"]
)
def test_what_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="give flip, crop:SHARE"):
        Augment.parse(text)


def test_first_view_is_the_picture_itself() -> None:
    image = picture(0)
    assert Augment.parse("flip+crop:0.1")(image, "digest", 0, 0) is image


def test_a_view_depends_on_picture_number_and_seed_alone() -> None:
    image, augment = picture(0, side=40), Augment.parse("flip+crop:0.2")
    one = augment(image, "a", 1, 0).tobytes()
    assert augment(image, "a", 1, 0).tobytes() == one
    others = [augment(image, *drawn).tobytes() for drawn in (("b", 1, 0), ("a", 2, 0), ("a", 1, 1))]
    assert len({one, *others}) == 4


def test_flip_mirrors_about_half() -> None:
    image, flip = picture(0), Augment.parse("flip")
    mirrored = np.asarray(image)[:, ::-1]
    found = [np.asarray(flip(image, str(number), 1, 0)) for number in range(200)]
    turned = sum(np.array_equal(view, mirrored) for view in found)
    assert turned + sum(np.array_equal(view, np.asarray(image)) for view in found) == 200
    assert 70 < turned < 130


@pytest.mark.parametrize("size", [(40, 40), (90, 30), (7, 100), (1, 1)])
def test_crop_keeps_its_share_of_the_area_and_lies_anywhere(size: tuple[int, int]) -> None:
    pixels = np.arange(size[0] * size[1], dtype=np.int32).reshape(size[1], size[0])
    image, crop = Image.fromarray(pixels, mode=None), Augment.parse("crop:0.3")
    corners = set()
    for number in range(200):
        view = np.asarray(crop(image, str(number), 1, 0))
        first = divmod(int(view[0, 0]), size[0])
        height, width = view.shape
        np.testing.assert_array_equal(view, pixels[first[0] : first[0] + height, first[1] : first[1] + width])
        corners.add(first)
        if min(size) * 2 > max(size) and min(size) > 10:
            assert view.size >= 0.25 * pixels.size  # sides are rounded
    assert len(corners) > 20 or size == (1, 1)
