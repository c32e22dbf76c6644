"""Decoding: what is read, what is refused, and that nothing is lost between a file and the processor."""

import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tiny_pictures import picture, png, tiny_deit, tiny_vit, write_class_folders

from sherl_cache.stages.load import load_pretrained
from sherl_cache.stages.picture_inputs import PictureInputs
from sherl_cache.stages.pictures import check, decode
from sherl_cache.stages.sources import open_source
from sherl_cache.stages.sources.contract import Picture
from sherl_cache.stages.tasks import task_for
from sherl_cache.storage.errors import AccessDenied, DataError, UsageError


def decoded(data: bytes) -> Image.Image:
    shown = Picture("a.png", data)
    check(shown, data)
    return decode(shown, data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_the_rgb_that_pillow_makes_of_it(mode: str) -> None:
    image = picture(0).convert(mode)
    found = decoded(png(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


def test_palette_with_transparency_keeps_its_colours_and_warns_of_nothing() -> None:
    image = picture(0).convert("P")
    found = decoded(png(image, transparency=bytes(range(256))))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


def test_16_bit_grey_keeps_its_upper_byte() -> None:
    levels = np.arange(400, dtype=np.uint16).reshape(20, 20) * 160
    found = np.asarray(decoded(png(Image.fromarray(levels))))
    np.testing.assert_array_equal(found, np.repeat((levels >> 8)[..., None], 3, axis=2))


def test_a_photograph_is_turned_as_its_tag_says() -> None:
    image, tags = picture(0), Image.Exif()
    tags[0x0112] = 6  # the camera was turned: show it rotated by 270 degrees
    found = decoded(png(image, exif=tags))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"no picture", "not one of BMP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not one of BMP"),
        (png(picture(0))[:200], "cannot be decoded"),
        (png(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "mode 'F'"),
    ],
    ids=["empty", "text", "a format that starts programs", "cut off", "floats"],
)
def test_what_is_no_picture_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        decoded(data)
    assert str(caught.value).startswith("a.png: ")


@pytest.mark.parametrize("factor", [0.9, 0.3], ids=["Pillow warns", "Pillow raises"])
def test_decompression_bomb_is_refused_at_pillows_limit(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    data = png(Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 * factor))
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a user's process
        with pytest.raises(DataError, match=r"a\.png: .*more than .* pixels"):
            decoded(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert decoded(data).size == (100, 100)


def test_a_file_that_is_gone_or_closed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone.png"
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        Picture(str(gone), gone).read()

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "refused")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(AccessDenied, match=r"gone\.png"):
        Picture(str(gone), gone).read()


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_vit(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"Pillow is not installed; pip install 'sherl-cache\[vision\]'"):
        load_pretrained(str(folder))


def test_forwards_are_the_processors_own_pixels_of_all_pictures_at_once(tmp_path: Path) -> None:
    """Oracle: one call of the library's processor; ours decodes by threads, one picture at a time, ahead of the model."""
    loaded = load_pretrained(str(tiny_deit(tmp_path / "model")))
    source = open_source(str(write_class_folders(tmp_path / "set", {"a": 5, "b": 6})))
    task = task_for(None, source, pictures=True)
    inputs = PictureInputs(loaded)
    rows = pa.Table.from_batches(list(inputs.encode(source, "train", task)))
    batches = inputs.batches(source, task)
    files = [Image.open(shown.name) for shown in source.take("train", "image", range(11))]
    expected = loaded.processor(images=files, return_tensors="pt")["pixel_values"]
    assert torch.equal(batches.batch("train", rows, np.arange(11)).pixels, expected)
    found = list(batches.forwards("train", rows, batch_tokens=3 * inputs.max_length))
    assert [len(chosen) for chosen, _ in found] == [3, 3, 3, 2]
    for chosen, batch in found:
        assert torch.equal(batch.pixels, expected[chosen])
    Path(files[10].filename).write_bytes(b"gone wrong")
    with pytest.raises(DataError, match="has changed since the store was planned"):
        list(batches.forwards("train", rows, batch_tokens=3 * inputs.max_length))
    abandoned = batches.forwards("train", rows, batch_tokens=inputs.max_length)
    next(abandoned)
    abandoned.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sherl-cache decode")]
