"""Encodings against an oracle written with Python integers and fractions."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sherl_cache.storage import ENCODINGS, decode, encode, encoding
from sherl_cache.storage.errors import InvalidInput

floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def bfloat16_by_hand(value: float) -> int:
    """Nearest bfloat16 of a float32, ties to even, by trying both neighbours exactly."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    below, above = bits >> 16, (bits >> 16) + 1  # towards and away from zero

    def exact(high: int) -> Fraction:
        if high & 0x7F80 == 0x7F80:  # one step past the largest number
            return Fraction(2) ** 128 * (-1 if high & 0x8000 else 1)
        return Fraction(struct.unpack("<f", struct.pack("<I", high << 16))[0])

    low, high = abs(Fraction(value) - exact(below)), abs(Fraction(value) - exact(above))
    return below if low < high or (low == high and below % 2 == 0) else above


@given(st.lists(floats32, min_size=1, max_size=50))
def test_bfloat16_equals_exact_rounding_to_nearest_even(values: list[float]) -> None:
    stored, _ = encode(np.asarray([values], np.float32), encoding("bfloat16"))
    assert stored[0].tolist() == [bfloat16_by_hand(value) for value in values]


@given(st.integers(0, 0xFFFF))
def test_bfloat16_numbers_survive_unchanged(bits: int) -> None:
    value = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    stored, misfit = encode(np.asarray([[value]], np.float32), encoding("bfloat16"))
    if bits & 0x7F80 != 0x7F80:
        assert stored[0, 0] == bits
        assert misfit.rows == ()
        assert decode(stored, encoding("bfloat16"))[0, 0] == value
    else:
        assert misfit.rows == (0,)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_decode_gives_the_nearest_number(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float64)
    stored, misfit = encode(values, encoding(name))
    assert misfit.rows == ()
    bits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[name]
    np.testing.assert_allclose(decode(stored, encoding(name)), values, rtol=2.0**-bits * 1.001)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_what_does_not_fit_is_counted_by_kind(name: str) -> None:
    values = np.ones((6, 3), np.float64 if name == "float64" else np.float32)
    values[1, 0] = np.nan
    values[1, 1] = np.inf
    values[4, 2] = -np.inf
    too_large = {"float16": 70000.0, "bfloat16": float(np.finfo(np.float32).max)}.get(name)
    if too_large is not None:
        values[5, 0] = too_large
    _, misfit = encode(values, encoding(name))
    assert (misfit.nan, misfit.inf, misfit.overflow) == (1, 2, int(too_large is not None))
    assert misfit.rows == ((1, 4, 5) if too_large is not None else (1, 4))


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_fill_decodes_to_nan(name: str) -> None:
    chosen = encoding(name)
    assert np.isnan(decode(np.full((2, 2), chosen.fill, chosen.dtype), chosen)).all()


def test_integers_are_refused() -> None:
    with pytest.raises(InvalidInput, match="int64"):
        encode(np.ones((1, 1), np.int64), encoding("float32"))


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("bfloat16", "bfloat16"),
        ("bfloat16+zstd", "bfloat16+zstd:1"),
        ("float32+zstd:03+bitround:10", "float32+bitround:10+zstd:3"),
        ("float16+bitround:9", "float16+bitround:9"),
        ("int8+zstd:22", "int8+zstd:22"),
    ],
)
def test_an_encoding_has_one_canonical_name(given: str, canonical: str) -> None:
    assert encoding(given).name == canonical
    assert encoding(canonical) == encoding(given)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bfloat61", "did you mean bfloat16"),
        ("", "one of float64"),
        ("bfloat16+zst", "did you mean zstd"),
        ("bfloat16+blosc", "'blosc' does not exist.*zstd:<level>"),
        ("bfloat16+", "'' does not exist"),
        ("bfloat16+zstd:23", "give 1 to 22"),
        ("bfloat16+zstd:", "give 1 to 22"),
        ("bfloat16+zstd:-1", "give 1 to 22"),
        ("bfloat16+zstd:9999999", "give 1 to 22"),
        ("bfloat16+zstd+zstd", "zstd is named twice"),
        ("bfloat16+bitround:5", "bitround works on float32 and float16"),
        ("int8+bitround:5", "bitround works on float32 and float16"),
        ("float16+bitround:11", "give 1 to 10"),
        ("float32+bitround", "no number: give 1 to 23"),
        ("float32+bitround:²", "give 1 to 23"),
    ],
)
def test_an_encoding_that_does_not_exist_is_refused_with_the_nearest_right_one(name: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        encoding(name)


@given(st.lists(floats32, min_size=1, max_size=50))
def test_bitround_to_7_bits_equals_rounding_to_bfloat16(values: list[float]) -> None:
    """A float32 with 7 bits of mantissa is a bfloat16, infinite where that is."""
    rows = np.asarray([values], np.float32)
    rounded, misfit = encode(rows, encoding("float32+bitround:7"))
    short, expected = encode(rows, encoding("bfloat16"))
    assert misfit == expected
    np.testing.assert_array_equal(rounded, decode(short, encoding("bfloat16")))


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 10))
def test_bitround_of_float16_errs_by_at_most_half_of_the_last_bit(values: list[float], bits: int) -> None:
    rows = np.asarray([values], np.float32)
    stored, misfit = encode(rows, encoding(f"float16+bitround:{bits}"))
    fits = np.isfinite(stored)
    assert misfit.overflow == int((~fits).sum())
    with np.errstate(over="ignore"):
        error = np.abs(stored.astype(np.float64) - rows)
    step = np.maximum(np.exp2(np.floor(np.log2(np.maximum(np.abs(rows), 2.0**-14)))), 2.0**-14) * 2.0**-bits
    assert (error[fits] <= (step / 2)[fits]).all()
    assert (stored.view(np.uint16) & ((1 << (10 - bits)) - 1) == 0)[fits].all()


def test_bitround_counts_what_does_not_fit_by_kind() -> None:
    values = np.asarray([[np.nan, np.inf, -np.inf, 65504.0, 1.0]], np.float32)
    _, misfit = encode(values, encoding("float16+bitround:3"))
    assert (misfit.nan, misfit.inf, misfit.overflow) == (1, 2, 1)
