"""gc removes what nothing names and nothing else; repair makes again what is damaged and nothing else."""

from pathlib import Path
from typing import Any

import growth_builders as cases
import pytest

from sherl_cache.storage import Store, StoreWriter, collect_garbage, find_garbage, repair_store, verify_store
from sherl_cache.storage.errors import StoreCorrupt


def test_gc_keeps_all_that_an_unfinished_growth_needs(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path)
    writer = cases.EVERYTHING.create(tmp_path)
    unit = writer.missing()[0]
    writer.write(unit, cases.EVERYTHING.buffer(writer, unit))
    (tmp_path / "train/encoder/h77/c/0").mkdir(parents=True)
    (tmp_path / "train/encoder/h77/c/0/0").write_bytes(b"orphan")
    (tmp_path / "sherl/receipts/train-00099.json").write_bytes(b"{}")
    found = find_garbage(tmp_path)
    assert [item.path for item in found] == ["sherl/receipts/train-00099.json", "train/encoder/h77/c/0/0"]
    assert [item.bytes for item in found] == [2, 6]
    assert collect_garbage(tmp_path) == found
    assert find_garbage(tmp_path) == []
    store = cases.EVERYTHING.build(tmp_path)
    cases.check(store, cases.EVERYTHING)
    assert [item.path for item in collect_garbage(tmp_path)] == ["sherl/manifest-1.json"]
    assert verify_store(tmp_path, deep=True) == []


def test_repair_runs_the_damaged_units_alone(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path)
    digest = cases.EVERYTHING.build(tmp_path).digest
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    units = StoreWriter.open(tmp_path).units()
    for unit, array in ((units[0], "train/encoder/h00"), (units[-1], "validation/decoder/h00")):
        path = tmp_path / array / "c" / str(unit.index) / "0"
        path.write_bytes(path.read_bytes()[:-3])
    made = []

    def make(unit: Any) -> Any:
        made.append(unit.name)
        return cases.EVERYTHING.buffer(StoreWriter.open(tmp_path), unit, cases.EVERYTHING.taps)

    done = repair_store(tmp_path, verify_store(tmp_path, deep=True), make)
    assert made == done.units == [units[0].name, units[-1].name]
    assert done.changed == []
    assert len(done.files) == 2
    assert Store.open(tmp_path).digest == digest
    assert {path: path.read_bytes() for path in before} == before
    assert verify_store(tmp_path, deep=True) == []


def test_values_that_come_out_otherwise_get_a_new_manifest(tmp_path: Path) -> None:
    digest = cases.BEGUN.build(tmp_path).digest
    unit = StoreWriter.open(tmp_path).units()[0]
    path = tmp_path / "train/encoder/h00/c/0/0"
    path.write_bytes(path.read_bytes()[:-3])

    def make(unit: Any) -> Any:
        buffer = cases.BEGUN.buffer(StoreWriter.open(tmp_path), unit, cases.BEGUN.taps)
        buffer.arrays["encoder", 0] += 1
        return buffer

    done = repair_store(tmp_path, verify_store(tmp_path, deep=True), make)
    assert done.changed == [unit.name]
    assert Store.open(tmp_path).digest != digest
    assert verify_store(tmp_path, deep=True) == []


def test_a_damaged_plan_is_not_guessed(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path)
    (tmp_path / "sherl/plan.json").write_bytes(b"{}")
    with pytest.raises(StoreCorrupt, match="a plan cannot be made again"):
        repair_store(tmp_path, verify_store(tmp_path, deep=True), lambda unit: pytest.fail("nothing is run"))


@pytest.mark.parametrize("damage", ["flipped", "other", "cut", "of a grown store"])
def test_a_damaged_plan_is_made_again_from_the_plan_that_the_store_names(tmp_path: Path, damage: str) -> None:
    digest = cases.BEGUN.build(tmp_path).digest
    if damage == "of a grown store":
        digest = cases.EVERYTHING.build(tmp_path).digest
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    plan = tmp_path / "sherl/plan.json"
    data = before[plan]
    changed = {"other": data.replace(b'"seed 0"', b'"seed 1"'), "cut": data[:-7]}
    plan.write_bytes(changed.get(damage, data.replace(b'"format"', b'"fOrmat"')))

    def repaired(case: cases.Growing) -> Any:
        return repair_store(
            tmp_path,
            verify_store(tmp_path, deep=True),
            lambda unit: pytest.fail("nothing is run"),
            files=cases.BEGUN.files(),
            tables=case.tables(),
            plan=case.plan(),
        )

    with pytest.raises(StoreCorrupt, match="another plan than the one that the store names"):
        repaired(cases.DEEPER)
    assert repaired(cases.BEGUN).files == ["sherl/plan.json"]
    assert Store.open(tmp_path).digest == digest
    assert {path: path.read_bytes() for path in before} == before
    assert verify_store(tmp_path, deep=True) == []


def test_a_lost_receipt_that_a_manifest_names_is_damage_and_is_repaired(tmp_path: Path) -> None:
    digest = cases.BEGUN.build(tmp_path).digest
    unit = StoreWriter.open(tmp_path).units()[0]
    (tmp_path / f"sherl/receipts/{unit.name}.json").unlink()
    findings = verify_store(tmp_path)
    assert [(finding.kind, finding.unit) for finding in findings] == [("corrupt", unit.name)]
    done = repair_store(
        tmp_path, findings, lambda unit: cases.BEGUN.buffer(StoreWriter.open(tmp_path), unit, cases.BEGUN.taps)
    )
    assert (done.units, done.changed) == ([unit.name], [])
    assert Store.open(tmp_path).digest == digest
    assert verify_store(tmp_path, deep=True) == []
