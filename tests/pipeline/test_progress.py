"""Progress in a log file: a line every few seconds, and one at the end that is not said twice."""

import itertools

import pytest

from sherl_cache.pipeline import progress
from sherl_cache.pipeline.progress import LogLines


def test_the_end_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    lines = LogLines("train", 2, "steps", 0)
    lines.advance(1)
    lines.advance(1, "loss 0.5")
    lines.close()
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in told] == ["train: 1/2 steps", "train: 2/2 steps"]
    assert told[-1].endswith(", loss 0.5")


def test_the_end_is_said_where_no_line_was_due(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LogLines("extract", 4, "examples", 1)
    lines.advance(3)
    lines.close()
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith("extract: 4/4 examples (100 %), ")


def test_a_job_with_nothing_to_do_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    LogLines("extract", 4, "examples", 4).close()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_hour_of_a_log_is_under_100_kilobytes_and_never_silent_for_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, said = 0.0, []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines = LogLines("train", 36_000_000, "examples", 0)
    for step in range(36_000):  # ten steps a second, each with a note
        now = step / 10
        lines.advance(1000, "loss 0.69314718, learning rate 1.25e-05, waiting for 1,234 units of other writers")
        if told := capsys.readouterr().err:
            said.append((now, told))
    assert sum(len(told.encode()) for _, told in said) < 100_000 / 2
    times = [at for at, _ in said]
    assert max(later - sooner for sooner, later in itertools.pairwise(times)) <= 61
    assert times[0] <= 6
