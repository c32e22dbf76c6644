"""`analyze` within its memory, on damaged stores, refused, and stopped half-way."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import call
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from store_builders import Case

from sherl_cache.pipeline.analysis.run import analyze_split
from sherl_cache.pipeline.analysis.work import plan_work
from sherl_cache.pipeline.cli import main
from sherl_cache.pipeline.progress import LogLines
from sherl_cache.storage import Ragged
from sherl_cache.storage.errors import BudgetTooSmall


class Blocks(Case):
    """Examples of 64 rows whose values repeat: quick to make."""

    def lengths(self, split: str) -> dict[str, Ragged]:
        ones = np.ones(self.examples[split], np.int32)
        return {stream: Ragged(64 * ones, ones) for stream in self.taps}

    def values(self, split: str, stream: str, tap: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(tap)
        block = rng.standard_normal((997, self.widths[stream]), dtype=np.float32)
        return np.resize(block, (64 * self.examples[split], self.widths[stream]))


WIDE = Blocks(
    examples={"train": 100},
    taps={"encoder": (0, 1, 2, 3)},
    widths={"encoder": 128},
    chunk_bytes=(256 << 10, 256 << 10),
    unit_memory=4 << 20,
)


def numbers(tree: Any) -> list[Any]:
    """Every number of a document, in order."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in numbers(value)]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in numbers(value)]
    return [tree] if isinstance(tree, (int, float)) else []


def test_little_memory_and_threads_change_no_figure(tmp_path: Path) -> None:
    """In the least memory that is accepted, row groups are taken some rows at a time."""
    store = replace(WIDE, encoding="bfloat16").build(tmp_path / "cache")
    with pytest.raises(BudgetTooSmall) as refused:
        analyze_split(store, "train", 1 << 20, 1, 64)
    least = int(re.findall(r"([\d,]+) bytes are needed", str(refused.value))[0].replace(",", ""))
    works = [
        plan_work(store, "train", "encoder", memory, threads, 64) for memory, threads in ((least, 4), (1 << 30, 3))
    ]
    assert works[0].height < works[1].height
    assert (works[0].threads, works[1].threads) == (1, 3)
    assert works[0].height == 16
    (small, _), (large, _) = (analyze_split(store, "train", memory, 3, 64) for memory in (least, 1 << 30))
    for one, other in zip(numbers(small.model_dump()), numbers(large.model_dump()), strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


def test_what_cannot_be_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    Case().build(root)
    assert "as in 512MiB" in call("analyze", "--store", root, "--memory", "much", code=2)
    assert re.search(r"[\d,]+ bytes are needed", call("analyze", "--store", root, "--memory", "1KiB", code=3))
    assert "fewer --rows" in call(
        "analyze", "--store", WIDE.build(tmp_path / "wide").root, "--memory", "16MiB", "--rows", 6000, code=3
    )
    assert "train, validation" in call("analyze", "--store", root, "--split", "dev", code=3)
    assert not (root / "sherl" / "analysis" / "train" / "analysis.json").exists()


def test_a_damaged_chunk_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    Case().build(root)
    shard = root / "train" / "encoder" / "h02" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    assert "train/encoder/h02" in call("analyze", "--store", root, code=5)
    assert list((root / "sherl" / "analysis" / "train").iterdir()) == []


def test_ctrl_c_ends_it_and_leaves_neither_file_nor_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "cache"
    WIDE.build(root)

    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before, handler = threading.active_count(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as context:
            context.setattr(LogLines, "advance", interrupted)
            assert main(["analyze", "--store", str(root)]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert threading.active_count() == before
    assert "Traceback" not in capsys.readouterr().err
    assert list((root / "sherl" / "analysis" / "train").iterdir()) == []
    assert call("analyze", "--store", root)["streams"]["encoder"]["rows"] > 0


MEASURED = """
import sys
from pathlib import Path
import pyarrow.parquet
from sherl_cache.pipeline.analysis.document import write_analysis
from sherl_cache.pipeline.analysis.run import analyze_split
from sherl_cache.pipeline.memory import peak_memory_bytes
from sherl_cache.storage import Store

root, out, memory = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
store = Store.open(root)
store.examples("train")
held = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
found, channels = analyze_split(store, "train", memory, 4, None)
write_analysis(out, found, channels)
print(held, peak_memory_bytes(), found.streams["encoder"].sampled_rows)
"""


@pytest.mark.slow
def test_a_store_twenty_times_the_limit_stays_within_it(tmp_path: Path) -> None:
    memory = 24 << 20
    case = replace(
        WIDE,
        encoding="bfloat16",
        examples={"train": 4000},
        widths={"encoder": 256},
        chunk_bytes=(1 << 20, 1 << 20),
        unit_memory=64 << 20,
    )
    store = case.build(tmp_path / "cache")
    assert store.bytes > 20 * memory
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(store.root), str(tmp_path / "out"), str(memory)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    held, peak, sampled = map(int, done.stdout.split())
    print(
        f"{store.bytes / 2**20:.0f} MiB of store, {held / 2**20:.0f} MiB before, {(peak - held) / 2**20:.1f} MiB more"
    )
    assert peak - held <= memory
    assert sampled >= 256
