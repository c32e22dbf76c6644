"""`info --watch`: units, rate, time left and who is at work, from receipts and leases alone."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from growth_builders import BEGUN as SMALL

from benchmarks.storage.seam import Unsynced, installed
from sherl_cache.pipeline import monitor
from sherl_cache.pipeline.monitor import Watch, look
from sherl_cache.storage import StoreWriter, Unit, commit, leases, processes
from sherl_cache.storage.readers.local import LocalFiles

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
BEGUN = replace(SMALL, unit_memory=1)
ELSEWHERE = "node7_0123456789ab-4711-00aa-0"


def hold(root: Path, unit: Unit, writer: str, beat: int = 0) -> None:
    commit.replace(root / leases.FOLDER / f"{unit.name}.1.json", leases.Lease(writer=writer, beat=beat).to_bytes())


def test_a_line_says_units_rate_time_left_and_who_is_at_work(tmp_path: Path) -> None:
    now = 100.0
    with installed(Unsynced()):
        writer = BEGUN.create(tmp_path)
        first, second, third, *_ = units = writer.units()
        total = sum(unit.examples for unit in units)
        watched = Watch(LocalFiles(tmp_path), lambda: now)
        assert watched.look()[1] == f"0/{len(units)} units, 0/{total} examples (0 %), nobody is at work"
        hold(tmp_path, second, ELSEWHERE)
        hold(tmp_path, third, f"{processes.process_name()}-0")
        BEGUN.fill(writer, first)
        now = 110.0
        rate = first.examples / 10
        at_work = f"2 at work: {second.name} on node7:4711; {third.name} on"
        line = watched.look()[1]
        assert line.startswith(f"1/{len(units)} units, {first.examples}/{total} examples (")
        assert f"{rate:,.1f} examples/s" in line
        assert f"{round((total - first.examples) / rate)} s left, {at_work}" in line
        assert line.endswith(f":{os.getpid()}")
        now = 180.0
        assert "node7:4711 (no sign of life for 1 min 10 s)" in watched.look()[1]
        hold(tmp_path, second, ELSEWHERE, beat=1)
        assert "no sign of life for 1 min 10 s" not in watched.look()[1].partition(";")[0]
        for unit in units:
            BEGUN.fill(writer, unit)
        seen, line = watched.look()
    assert (seen.units_done, seen.finished) == (len(units), False)
    assert " left" not in line
    assert line.endswith("nobody is at work")


def test_looking_reads_no_receipt(tmp_path: Path) -> None:
    class Counting(LocalFiles):
        read_paths: list[str] = []  # noqa: RUF012

        def read(self, path: str, limit: int) -> bytes | None:
            self.read_paths.append(path)
            return super().read(path, limit)

    with installed(Unsynced()):
        BEGUN.build(tmp_path)
    assert look(Counting(tmp_path)).finished
    assert not [path for path in Counting.read_paths if "receipts" in path]


def test_watching_ends_with_the_store_and_info_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with installed(Unsynced()):
        writer = BEGUN.create(tmp_path)
        BEGUN.fill(writer, writer.units()[0])
        hold(tmp_path, writer.units()[1], ELSEWHERE)
        begun = look(LocalFiles(tmp_path)).to_json()
        jsonschema.validate(begun["units"], SCHEMAS["info"]["properties"]["units"])
        jsonschema.validate(begun["at_work"], SCHEMAS["info"]["properties"]["at_work"])
        assert begun["units"] == {"done": 1, "all": len(writer.units())}
        assert [(one["unit"], one["host"], one["pid"]) for one in begun["at_work"]] == [
            (writer.units()[1].name, "node7", 4711)
        ]
        slept = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            missing = StoreWriter.open(tmp_path).missing()
            if missing:
                BEGUN.fill(writer, missing[0])
            else:
                writer.finalize()

        monkeypatch.setattr(monitor.time, "sleep", sleep)
        monitor.watch(tmp_path)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("1/")
    assert told[-1].startswith(f"{len(writer.units())}/{len(writer.units())} units")
    assert len(slept) == len(writer.units())
