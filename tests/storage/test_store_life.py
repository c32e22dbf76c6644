"""The life of a store in any order: it grows, is damaged and repaired, cleaned, copied away and back; nothing is lost."""

import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import growth_builders as cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from benchmarks.storage.small import BLOBS
from sherl_cache.storage import (
    Finding,
    Store,
    StoreWriter,
    Unit,
    UnitBuffer,
    collect_garbage,
    repair_store,
    verify_store,
)
from sherl_cache.storage.documents import plan_path
from sherl_cache.storage.errors import StoreNotUsable, StoreStale
from sherl_cache.storage.ledger import manifest_numbers, read_chain
from sherl_cache.storage.readers.local import LocalFiles

TAPS = {"encoder": (0, 1, 2, 3), "decoder": (0, 1, 2)}
JUNK = ("sherl/receipts/train-00099.json", "train/encoder/h77/c/0/0", "sherl/plan-99.json.txt", "notes.txt")


class Life(RuleBasedStateMachine):
    """`case` is what was asked for so far; a store holds just that at all times, whatever else was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sherl-life-"))
        self.root = self.folder / "store"
        self.case = cases.BEGUN
        self.asked: list[cases.Growing] = []
        """What each plan was asked for, in order."""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        self.grow(cases.BEGUN)

    def grow(self, case: cases.Growing) -> None:
        try:
            case.plan()
        except StoreStale:  # the split began with examples so short that a chunk cannot hold the new ones
            return
        self.case = case
        self.digest = case.build(self.root).digest
        while len(read_chain(LocalFiles(self.root)).plans) > len(self.asked):
            self.asked.append(case)

    @precondition(lambda self: len(self.case.parts["train"]) < 4)
    @rule(examples=st.integers(1, 30), split=st.sampled_from(["train", "validation"]))
    def add_examples(self, examples: int, split: str) -> None:
        held = self.case.parts.get(split, ())
        self.grow(replace(self.case, parts={**self.case.parts, split: (*held, examples)}))

    @rule(stream=st.sampled_from(sorted(TAPS)), data=st.data())
    def add_a_tap(self, stream: str, data: st.DataObject) -> None:
        tap = data.draw(st.sampled_from(TAPS[stream]))
        taps = tuple(sorted({*self.case.taps[stream], tap}))
        self.grow(replace(self.case, taps={**self.case.taps, stream: taps}))

    @rule(examples=st.integers(1, 9), units=st.integers(0, 1))
    def die_while_growing(self, examples: int, units: int) -> None:
        """Another part is begun and some units of it are written; the same growth finishes it."""
        case = replace(self.case, parts={**self.case.parts, "train": (*self.case.parts["train"], examples)})
        try:
            writer = case.create(self.root)
        except StoreStale:
            return
        for unit in writer.missing()[:units]:
            writer.write(unit, case.buffer(writer, unit))
        collect_garbage(self.root)
        assert Store.open(self.root).digest == self.digest
        self.grow(case)

    @rule(data=st.data(), how=st.sampled_from(["flip", "cut", "gone"]))
    def damage_and_repair(self, data: st.DataObject, how: str) -> None:
        paths = [path for path in files_of(self.root) if path.startswith(("sherl/", "train/", "validation/", "zarr"))]
        path = data.draw(st.sampled_from([path for path in paths if how != "gone" or path != "sherl/plan.json"]))
        before = (self.root / path).read_bytes()
        if how == "gone":
            (self.root / path).unlink()
        else:
            place = data.draw(st.integers(0, len(before) - 1))
            flipped = bytes([before[place] ^ (1 << data.draw(st.integers(0, 7)))])
            (self.root / path).write_bytes(before[:place] + (flipped + before[place + 1 :] if how == "flip" else b""))
        try:
            findings = verify_store(self.root, deep=True)
        except StoreNotUsable:  # a flipped bit made it a newer format
            (self.root / path).write_bytes(before)
            return
        self.repair(path, findings)

    def repair(self, path: str, findings: list[Finding]) -> None:
        if not findings:  # an older manifest, which nothing needs
            assert path.startswith("sherl/manifest-")
            return
        plans = [plan_path(number) for number in range(1, len(self.asked) + 1)]
        case = self.asked[plans.index(path)] if path in plans else self.case

        def make(unit: Unit) -> UnitBuffer:
            return self.case.buffer(StoreWriter.open(self.root), unit, self.case.taps)

        done = repair_store(self.root, findings, make, files=BLOBS, tables=case.tables(), plan=case.plan())
        assert done.changed == []

    @rule()
    def clean(self) -> None:
        for path in JUNK:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(b"junk")
        removed = {garbage.path for garbage in collect_garbage(self.root)}
        assert set(JUNK[:2]) <= removed
        assert removed.isdisjoint(JUNK[2:])  # no store has files of such names
        for path in JUNK[2:]:
            (self.root / path).unlink()
        assert len(manifest_numbers(LocalFiles(self.root))) == 1
        assert collect_garbage(self.root) == []

    @rule()
    def copy_there_and_back(self) -> None:
        subprocess.run(["cp", "-r", self.root, self.folder / "there"], check=True)
        shutil.rmtree(self.root)
        subprocess.run(["cp", "-r", self.folder / "there", self.root], check=True)
        shutil.rmtree(self.folder / "there")

    @invariant()
    def holds_what_was_asked_for(self) -> None:
        if self.asked:
            assert verify_store(self.root, deep=True) == []
            store = Store.open(self.root)
            assert store.digest == self.digest
            cases.check(store, self.case)


def files_of(root: Path) -> list[str]:
    paths = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return sorted(str(path.relative_to(root)) for path in paths)


TestLife = pytest.mark.slow(Life.TestCase)
TestLife.settings = settings(max_examples=25, stateful_step_count=8, deadline=None)


@given(st.permutations(["grow", "copy", "clean"]), st.sampled_from(["longer", "wider", "deeper", "everything"]))
@settings(max_examples=6, deadline=None)
def test_growing_copying_and_cleaning_in_any_order_end_with_the_same_store(order: list[str], step: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        cases.BEGUN.build(root)
        for action in order:
            if action == "grow":
                cases.STEPS[step].build(root)
            elif action == "clean":
                collect_garbage(root)
            else:
                subprocess.run(["cp", "-r", root, Path(folder, "there")], check=True)
                shutil.rmtree(root)
                subprocess.run(["cp", "-r", Path(folder, "there"), root], check=True)
        assert verify_store(root, deep=True) == []
        cases.check(Store.open(root), cases.STEPS[step])
        assert {garbage.reason for garbage in collect_garbage(root)} <= {"manifest"}
        assert verify_store(root, deep=True) == []
