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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_int8_decoded_on_a_gpu_equals_numpy() -> None:
    values = samples(2, 50, 40)
    taps = tuple(calibrate({0: tap}).tap(0) for tap in values)
    stored = np.stack([encode(tap, encoding("int8"), c)[0] for tap, c in zip(values, taps, strict=True)])
    expected = np.stack([decode(tap, encoding("int8"), c) for tap, c in zip(stored, taps, strict=True)])
    found = TapDecoder(encoding("int8"), taps, torch.device("cuda"))(stored)
    np.testing.assert_array_equal(found.cpu().numpy(), expected)
