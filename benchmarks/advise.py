"""Whether `sherl-cache advise` chooses the way that is really quicker.

    python -m benchmarks.advise                       (all settings; TMPDIR names the disk)
    python -m benchmarks.advise --quick               (three of them)
    python -m benchmarks.advise --only deep --json found.json

For each setting: ask for advice, then do both: extract and train from the store, out of the page cache at first, and train
with the early layers in every step. `chosen / better` is the time of the way that was advised over that of the quicker one;
what advise foretold stands beside. Loading the model and tokenising, which both ways do, are not counted. Ends with 1 unless
the advised way is within 20 % of the better one in all settings, of twelve and more in all but one.

Models have random weights, which make no difference to time. A setting with a `read cap` reads through the store's own
reader, which then sleeps until so many bytes a second have passed: real files on a disk as slow as that, without a page cache.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands import show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sherl_cache.pipeline.recipe import Recipe
    from sherl_cache.pipeline.training import Training

WITHIN = 1.2
WORDS = 2000
LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Setting:
    """One job. tokens: shortest and longest text; cap: bytes a second that the disk gives, None: what it can."""

    name: str
    kind: str
    layers: int
    width: int
    tokens: tuple[int, int]
    rows: int
    epochs: int
    recipe: str = "sherl"
    encoding: str = "bfloat16"
    cap: int | None = None
    settings: tuple[str, ...] = ()
    runs: int = 1


STREAMED = ("data.read_budget=16MiB", "data.window=1", "extract.chunk_bytes=64KiB")
"""The stores of these settings do not stay in memory, so that every epoch reads them."""
SETTINGS = (
    Setting("deep, 1 epoch", "encoder", 16, 256, (6, 30), 700, 1),
    Setting("deep, 2 epochs", "encoder", 16, 256, (6, 30), 500, 2),
    Setting("deep, 6 epochs, int8", "encoder", 16, 256, (6, 30), 200, 6, encoding="int8"),
    Setting("shallow, 1 epoch", "encoder", 3, 256, (6, 30), 2000, 1),
    Setting("shallow, late half, 4 epochs", "encoder", 4, 256, (6, 30), 600, 4, settings=("late.blocks=2",)),
    Setting("long texts, 2 epochs, zstd", "encoder", 8, 256, (100, 128), 200, 2, encoding="bfloat16+zstd"),
    Setting("long texts, 3 epochs, slow disk", "encoder", 6, 256, (100, 128), 128, 3, cap=8 << 20, settings=STREAMED),
    Setting("short texts, 4 epochs, slow disk, in memory", "encoder", 12, 256, (6, 30), 400, 4, cap=4 << 20),
    Setting("tiny, 2 epochs, slow disk", "encoder", 4, 128, (20, 60), 600, 2, cap=4 << 20, settings=STREAMED),
    Setting("encoder-decoder, 1 epoch", "encoder-decoder", 4, 256, (6, 30), 600, 1),
    Setting("encoder-decoder, 4 epochs, float32", "encoder-decoder", 6, 256, (6, 30), 250, 4, encoding="float32"),
    Setting("probe, 1 epoch", "encoder", 8, 256, (20, 60), 1000, 1, "probe", settings=("late.blocks=0",)),
    Setting("probe, 5 epochs", "encoder", 8, 256, (20, 60), 500, 5, "probe", settings=("late.blocks=0",)),
    Setting("no late layers, 2 epochs of 2 runs", "encoder", 8, 256, (6, 30), 400, 2, "unipt", runs=2),
)
QUICK = ("shallow, 1 epoch", "deep, 2 epochs", "tiny, 2 epochs, slow disk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three settings")
    parser.add_argument("--only", help="settings whose name holds this")
    parser.add_argument("--seconds", type=float, default=8.0, help="that advise may measure")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.setting:
        (setting,) = [setting for setting in SETTINGS if setting.name == options.setting]
        print(json.dumps(run(setting, options.seconds)))
        return
    chosen = [setting for setting in SETTINGS if not options.quick or setting.name in QUICK]
    chosen = [setting for setting in chosen if options.only is None or options.only in setting.name]
    if not chosen:
        parser.error(f"no setting is called {options.only!r}; there are: {'; '.join(s.name for s in SETTINGS)}")
    found = []
    for setting in chosen:
        print(setting.name, file=sys.stderr, flush=True)
        words = ("--setting", setting.name, "--seconds", str(options.seconds))
        done = subprocess.run([sys.executable, "-m", "benchmarks.advise", *words], stdout=subprocess.PIPE, check=True)
        found.append(json.loads(done.stdout))
    table(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    near = sum(record["ratio"] <= WITHIN for record in found)
    print(f"within {WITHIN - 1:.0%} of the better way in {near} of {len(found)}")
    raise SystemExit(int(len(found) - near > len(found) // 12))


def run(setting: Setting, seconds: float) -> dict[str, Any]:
    """Advice for a setting, and what both ways really take."""
    from sherl_cache.pipeline.flow import advise
    from sherl_cache.pipeline.recipe import load_recipe

    if setting.cap is not None:
        cap_reading(setting.cap)
    with tempfile.TemporaryDirectory(prefix="sherl-cache-advise-") as temporary:
        folder = Path(temporary)
        MODELS[setting.kind](folder / "model", setting)
        write_texts(folder / "data.csv", setting)
        flags = {
            "extract.model": str(folder / "model"),
            "extract.data": str(folder / "data.csv"),
            "extract.text_columns": ("text",),
            "extract.label_column": "label",
            "extract.splits": f"holdout:{setting.rows // 10}",
            "extract.encoding": setting.encoding,
            "train.epochs": setting.epochs,
        }
        recipe = load_recipe(setting.recipe, setting.settings, **flags)
        advice = advise(recipe, folder / "cache", None, setting.runs, seconds)
        extracting, training = cached(recipe, folder / "cache", setting, advice)
        took = {"cached": extracting + training, "recomputed": recomputed(recipe, folder / "cache", setting)}
    better = min(took.values())
    advised = {"cache": "cached", "recompute": "recomputed"}[advice["way"]]
    return {
        "setting": setting.name,
        "advised": advice["way"],
        "better": "cache" if took["cached"] == better else "recompute",
        "ratio": took[advised] / better,
        **took,
        "extracting": extracting,
        "foretold": advice["seconds"],
        "asked_seconds": advice["seconds_taken"],
        "store_bytes": advice["bytes"],
        "encoding": advice["encoding"],
        "taps": advice["taps"],
        "measured": advice["measured"],
    }


def cached(recipe: Recipe, root: Path, setting: Setting, advice: dict[str, Any]) -> tuple[float, float]:
    """Seconds to extract as advised, and to train from the store, which is not in the page cache when that begins."""
    from sherl_cache.pipeline.extracting import create_writer, extract_here
    from sherl_cache.pipeline.preparing import extract_settings, preparing
    from sherl_cache.pipeline.training import Training
    from sherl_cache.pipeline.walltime import WallTime
    from sherl_cache.stages.taps import format_taps
    from sherl_cache.storage import Store

    from .storage import disk

    taps = format_taps(advice["taps"])
    settings = replace(extract_settings(recipe), encoding=advice["encoding"], taps=taps)
    with preparing(settings, recipe.train.device, root) as prepared:
        begun = time.perf_counter()
        writer = create_writer(root, prepared)
        extract_here(prepared, writer, WallTime.of(None))
        writer.finalize()
        extracting = time.perf_counter() - begun
    disk.forget([path for path in root.rglob("*") if path.is_file()])
    return extracting, sum(trained(Training.of(recipe, Store.open(root))) for _ in range(setting.runs))


def recomputed(recipe: Recipe, root: Path, setting: Setting) -> float:
    """Seconds to train on the same examples with the early layers in every step. Of the store it takes no state."""
    from sherl_cache.pipeline.advice.live import LiveBatches
    from sherl_cache.pipeline.preparing import extract_settings, preparing
    from sherl_cache.pipeline.training import Training
    from sherl_cache.stages.train import TrainingLoop
    from sherl_cache.storage import Store

    took = 0.0
    with preparing(extract_settings(recipe), recipe.train.device, root.with_name("none")) as prepared:
        for _ in range(setting.runs):
            training = Training.of(recipe, Store.open(root))
            assert training.validation is not None
            train, validation = (
                LiveBatches(batches, prepared.loaded, prepared.batches)
                for batches in (training.batches, training.validation)
            )
            loop = TrainingLoop(training.model, training.objective, train, training.loop.settings)
            took += trained(replace(training, batches=train, validation=validation, loop=loop))
    return took


def trained(training: Training) -> float:
    """Seconds to train to the end, with a validation each epoch."""
    from sherl_cache.pipeline.training import Recorder, Silent
    from sherl_cache.stages.evaluate import evaluate

    def validate() -> tuple[float, dict[str, Any]]:
        return training.keep(None, evaluate(training.evaluator()))

    begun = time.perf_counter()
    training.loop.run(Recorder(None, Silent()), validate)
    return time.perf_counter() - begun


def cap_reading(most: int) -> None:
    """Let the store's reader give at most so many bytes a second, over all threads of this process."""
    from sherl_cache.storage.readers import local

    lock, free = threading.Lock(), [0.0]

    def capped(call: Callable[..., int]) -> Callable[..., int]:
        def read(*arguments: Any) -> int:
            count = call(*arguments)
            with lock:
                free[0] = max(free[0], time.perf_counter()) + max(count, 0) / most
                pause = free[0] - time.perf_counter()
            time.sleep(max(pause, 0.0))
            return count

        return read

    local._preadv = capped(local._preadv)
    if local._preadv_table is not None:
        local._preadv_table = capped(local._preadv_table)


def table(found: Sequence[dict[str, Any]]) -> None:
    """Print what was advised, and what would have been better."""
    columns = ["setting", "advised", "better", "chosen / better", "cached s", "foretold", "recomputed s", "foretold"]
    rows = [
        [
            record["setting"],
            record["advised"],
            record["better"],
            f"{record['ratio']:.2f}",
            *(f"{part[way]:.1f}" for way in ("cached", "recomputed") for part in (record, record["foretold"])),
        ]
        for record in found
    ]
    show("advise", columns, rows)


def write_texts(path: Path, setting: Setting) -> None:
    """A table of random words with random labels; a tenth more rows, which are held out."""
    source = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for _ in range(setting.rows + setting.rows // 10):
            words = (f"w{source.randrange(WORDS):04d}" for _ in range(source.randint(*setting.tokens) - 2))
            rows.writerow([" ".join(words), source.choice(LABELS)])


def make_encoder(folder: Path, setting: Setting) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number:04d}" for number in range(WORDS))]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=setting.width,
        intermediate_size=4 * setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.width // 64,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)


def make_encoder_decoder(folder: Path, setting: Setting) -> None:
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -3.0) for word in (*LABELS, *(f"w{number:04d}" for number in range(WORDS)))]
    shape = {"d_model": setting.width, "d_kv": 64, "d_ff": 4 * setting.width, "num_heads": setting.width // 64}
    config = T5Config.from_dict(
        {"vocab_size": 4096, "num_layers": setting.layers, "decoder_start_token_id": 0, **shape}
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512).save_pretrained(folder)


MODELS = {"encoder": make_encoder, "encoder-decoder": make_encoder_decoder}


if __name__ == "__main__":
    main()
