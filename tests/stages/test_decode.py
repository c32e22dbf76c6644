"""Decoding on the device equals storage.decode, bit for bit."""

import numpy as np
import pytest
import torch

from sherl_cache.stages.decode import TapDecoder
from sherl_cache.storage import ENCODINGS, ChannelCalibration, calibrate, decode, encode, encoding

CPU = torch.device("cpu")


def samples(taps: int, rows: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((taps, rows, width)) * rng.lognormal(0, 1, (taps, 1, width)) + 1
    values[:, ::7, 1] *= 500
    return values.astype(np.float32)


@pytest.mark.parametrize("name", [*sorted(ENCODINGS), "float32+bitround:5", "float16+zstd"])
def test_floats_decoded_in_torch_equal_numpy(name: str) -> None:
    stored = np.stack([encode(values, encoding(name))[0] for values in samples(3, 10, 8)])
    found = TapDecoder(encoding(name), (), CPU)(stored)
    np.testing.assert_array_equal(found.numpy(), np.stack([decode(tap, encoding(name)) for tap in stored]))


@pytest.mark.parametrize("outliers", [0, 1, 5])
def test_int8_decoded_in_torch_equals_numpy(outliers: int) -> None:
    values = samples(3, 50, 40)
    taps = []
    for tap in values:
        fitted = calibrate({0: tap}).tap(0)
        chosen = np.sort(np.random.default_rng(outliers).permutation(40)[:outliers])
        taps.append(ChannelCalibration(fitted.shift, fitted.scale, chosen))
    stored = np.stack([encode(tap, encoding("int8"), c)[0] for tap, c in zip(values, taps, strict=True)])
    stored[1, 4:6] = -128  # never written
    expected = np.stack([decode(tap, encoding("int8"), c) for tap, c in zip(stored, taps, strict=True)])
    assert np.isnan(expected[1, 4:6]).all()
    decoder = TapDecoder(encoding("int8"), tuple(taps), CPU)
    np.testing.assert_array_equal(decoder(stored).numpy(), expected)
    np.testing.assert_array_equal(decoder(stored[:, 3:20]).numpy(), expected[:, 3:20])  # a batch is a view of its block
    assert decoder(stored[:, :0]).shape == (3, 0, 40)
    alone = TapDecoder(encoding("int8"), (taps[0],), CPU)(stored[:1, 9:10])
    np.testing.assert_array_equal(alone.numpy(), expected[:1, 9:10])


@pytest.mark.parametrize(("widths", "outliers"), [((40, 12), (0, 0)), ((40, 39), (0, 1))])
def test_taps_of_several_widths_are_decoded_each_as_its_own(widths: tuple[int, ...], outliers: tuple[int, ...]) -> None:
    """The second: 40 channels without outliers have as many bytes as 39 with one, and are one array in a batch."""
    taps, stored = [], []
    for width, count in zip(widths, outliers, strict=True):
        fitted = calibrate({0: samples(1, 50, width)[0]}).tap(0)
        taps.append(ChannelCalibration(fitted.shift, fitted.scale, np.arange(count)))
        stored.append(encode(samples(1, 50, width)[0], encoding("int8"), taps[-1])[0])
    rows = np.stack(stored) if stored[0].shape == stored[1].shape else tuple(stored)
    found = TapDecoder(encoding("int8"), tuple(taps), CPU)(rows)
    for tap, part, channels in zip(found, stored, taps, strict=True):
        np.testing.assert_array_equal(tap.numpy(), decode(part, encoding("int8"), channels))
    floats = tuple(encode(samples(1, 5, width)[0], encoding("bfloat16"))[0] for width in widths)
    for tap, part in zip(TapDecoder(encoding("bfloat16"), (), CPU)(floats), floats, strict=True):
        np.testing.assert_array_equal(tap.numpy(), decode(part, encoding("bfloat16")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_int8_decoded_on_a_gpu_equals_numpy() -> None:
    values = samples(2, 50, 40)
    taps = tuple(calibrate({0: tap}).tap(0) for tap in values)
    stored = np.stack([encode(tap, encoding("int8"), c)[0] for tap, c in zip(values, taps, strict=True)])
    expected = np.stack([decode(tap, encoding("int8"), c) for tap, c in zip(stored, taps, strict=True)])
    found = TapDecoder(encoding("int8"), taps, torch.device("cuda"))(stored)
    np.testing.assert_array_equal(found.cpu().numpy(), expected)


@pytest.mark.parametrize(
    ("name", "kept"), [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", None)]
)
def test_what_nobody_widens_stays_as_it_is_stored(name: str, kept: torch.dtype | None) -> None:
    stored = np.stack([encode(values, encoding(name))[0] for values in samples(2, 10, 8)])
    found = TapDecoder(encoding(name), (), CPU, widen=False)(stored)
    assert found.dtype == (kept or torch.float32)
    assert torch.equal(found.float(), TapDecoder(encoding(name), (), CPU)(stored))
