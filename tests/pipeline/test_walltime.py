"""No unit is begun that the wall time cannot hold, and the command that says so goes on where it stopped."""

import time
from pathlib import Path

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline.walltime import END_VARIABLE, MARGIN, RESERVE_SECONDS, WallTime, seconds_left
from sherl_cache.storage import Store
from sherl_cache.storage.errors import UsageError


def test_a_unit_fits_where_the_slowest_one_so_far_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    wall_time = WallTime(1000 + RESERVE_SECONDS + MARGIN * 30)
    assert wall_time.fits(10**9)  # nothing is known yet
    wall_time.took(10, 20)
    wall_time.took(10, 10)
    assert wall_time.fits(14)
    assert not wall_time.refused
    assert not wall_time.fits(15)
    assert wall_time.refused
    assert not WallTime(1000 + RESERVE_SECONDS).fits(1)
    assert WallTime(None).fits(10**9)


def test_the_end_is_what_the_user_says_or_else_what_slurm_says() -> None:
    assert WallTime.of(None, {}).ends_at is None
    assert WallTime.of(None, {END_VARIABLE: "1700000000"}).ends_at == 1_700_000_000
    assert WallTime.of(None, {END_VARIABLE: "UNLIMITED"}).ends_at is None
    assert 59 < WallTime.of(60, {END_VARIABLE: "1700000000"}).left <= 60
    assert seconds_left("1h30min") == 5400
    with pytest.raises(UsageError, match="--time-left soon: a time is written as"):
        seconds_left("soon")


def test_extract_out_of_time_ends_with_75_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_bert(tmp_path / "model"), write_csv(tmp_path / "train.csv", 60)
    command = ("extract", "--model", model, "--data", data, "--store", tmp_path / "store")
    command = (*command, "--unit-memory", "8KiB", "--set", "extract.chunk_bytes=1KiB")
    monkeypatch.setenv(END_VARIABLE, str(int(time.time()) + 5))
    told = call(*command, code=75)
    assert "of wall time are left, too little for another unit" in told
    assert not list((tmp_path / "store" / "sherl").glob("manifest*"))
    monkeypatch.delenv(END_VARIABLE)
    assert call(*command, "--time-left", "2h")["examples"] == 60
    assert Store.open(tmp_path / "store").verify(deep=True) == []
