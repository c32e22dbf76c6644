"""Plans that are damaged or gone: the right one is named, and only the very same one takes its place."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import growth_builders as cases
import pytest

from benchmarks.storage.small import BLOBS
from sherl_cache.storage import Repair, Store, collect_garbage, find_garbage, repair_store, verify_store
from sherl_cache.storage.broken_plans import find_broken_plan
from sherl_cache.storage.errors import StoreCorrupt, StoreStale
from sherl_cache.storage.ledger import find_chain
from sherl_cache.storage.readers.local import LocalFiles

STEPS = [
    cases.BEGUN,
    cases.LONGER,
    replace(cases.LONGER, taps={"encoder": (0, 1, 2), "decoder": (1,)}),
    replace(cases.LONGER, taps={"encoder": (0, 1, 2), "decoder": (1,)}, parts={"train": (40, 25), "validation": (12,)}),
]
PLANS = ["sherl/plan.json", "sherl/plan-2.json", "sherl/plan-3.json", "sherl/plan-4.json"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def other_value(path: Path) -> None:
    tree = json.loads(path.read_bytes())
    tree["environment"]["numpy"] += ".1"
    path.write_bytes(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode())


def other_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


DAMAGES: dict[str, Callable[[Path], object]] = {"cut": cut, "changed": other_value, "gone": Path.unlink}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for step in STEPS:
        step.build(tmp_path / "store")
    return tmp_path / "store"


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def repaired(root: Path, case: cases.Growing | None) -> Repair:
    given: dict[str, Any] = {} if case is None else {"plan": case.plan(), "files": BLOBS, "tables": case.tables()}
    return repair_store(root, verify_store(root, deep=True), lambda unit: pytest.fail(f"{unit.name} is run"), **given)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_damaged_plan_is_named_and_made_again_from_what_it_was_asked_for(
    root: Path, number: int, damage: str
) -> None:
    before, path = content(root), PLANS[number - 1]
    DAMAGES[damage](root / path)
    broken = find_broken_plan(LocalFiles(root))
    assert broken is not None
    assert (broken.number, broken.path) == (number, path)
    assert str(root / path) in broken.problem
    if (number, damage) != (1, "gone"):  # without its first plan a folder is no store
        found = verify_store(root, deep=True)
        assert [(finding.kind, finding.path) for finding in found] == [("corrupt", path)]
        damaged = content(root)
        with pytest.raises(StoreCorrupt, match=r"cannot be made again from the store alone"):
            repaired(root, None)
        for wrong in STEPS[: number - 1] + STEPS[number:]:
            with pytest.raises(
                StoreCorrupt, match=r"cannot be made again|another plan than the one that the store names"
            ):
                repaired(root, wrong)
        assert content(root) == damaged
        with pytest.raises(StoreCorrupt, match="repair the store first"):
            collect_garbage(root)
        assert repaired(root, STEPS[number - 1]).files == [path]
        assert {name: data for name, data in content(root).items() if not name.endswith(".tmp")} == before
        assert verify_store(root, deep=True) == []
        cases.check(Store.open(root), STEPS[-1])


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_plan_whose_bytes_alone_changed_needs_nothing_to_be_made_again(root: Path, number: int) -> None:
    before = content(root)
    other_bytes(root / PLANS[number - 1])
    assert [finding.path for finding in verify_store(root, deep=True)] == [PLANS[number - 1]]
    assert repaired(root, None).files == [PLANS[number - 1]]
    assert {name: data for name, data in content(root).items() if not name.endswith(".tmp")} == before


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_plan_of_another_environment_is_made_again_with_that_of_its_neighbour(
    root: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(root)
    cut(root / PLANS[number - 1])
    monkeypatch.setattr(cases.np, "__version__", "99")
    assert STEPS[number - 1].plan().environment == {"numpy": "99"}
    assert repaired(root, STEPS[number - 1]).files == [PLANS[number - 1]]
    assert {name: data for name, data in content(root).items() if not name.endswith(".tmp")} == before


@pytest.mark.parametrize("number", [2, 3])
def test_a_store_that_lacks_a_plan_between_others_is_not_opened_as_an_older_one(root: Path, number: int) -> None:
    (root / PLANS[number - 1]).unlink()
    with pytest.raises(StoreCorrupt, match=rf"plan-{number}\.json: the plan is missing, sherl/plan-{number + 1}\.json"):
        Store.open(root)
    with pytest.raises(StoreCorrupt, match="the plan is missing"):
        STEPS[3].create(root)


def test_a_lost_last_plan_is_not_grown_over_and_gc_keeps_what_it_names(root: Path) -> None:
    (root / PLANS[3]).unlink()
    damaged = content(root)
    with pytest.raises(StoreCorrupt, match=r"plan-4\.json: the plan is missing.*repair the store first"):
        find_garbage(root)
    assert content(root) == damaged
    chain = find_chain(LocalFiles(root))
    assert chain is not None
    assert len(chain.plans) == 3
    # the same growth again is the same plan: nothing is run
    assert STEPS[3].create(root).missing() == []
    assert verify_store(root, deep=True) == []


def test_one_document_that_names_another_plan_is_the_damaged_one(root: Path) -> None:
    for path in ("sherl/manifest-4.json", "sherl/receipts/validation-00000.json"):
        before = (root / path).read_bytes()
        tree = json.loads(before)
        (root / path).write_bytes(before.replace(tree["plan"].encode(), b"0" * 64))
        assert find_broken_plan(LocalFiles(root)) is None
        assert path in {finding.path for finding in verify_store(root, deep=True)}
        (root / path).write_bytes(before)


def test_a_chain_that_begins_with_another_store_is_no_repair(root: Path, tmp_path: Path) -> None:
    cut(root / PLANS[1])
    other = replace(STEPS[1], unit_memory=1)
    with pytest.raises(StoreCorrupt, match="the store was made from something else"):
        repaired(root, other)
    with pytest.raises((StoreCorrupt, StoreStale)):
        other.create(root)
