"""LoRA on all layers (peft) and full fine-tuning of the whole live model, by the protocol of `benchmarks.accuracy`.

    python -m benchmarks.live_baselines --data path/to/glue/SST-2 --task sst2 --limit 8000 --epochs 4 --seeds 3

Encoder-only models, mean pooling and one linear layer on it, as the recipes have. AdamW, batch 32, 6 % warm-up, linear
decay, clipping at 1, as in the recipes' loop; a batch runs as four micro-batches of like length, which changes no gradient
and halves the padding. Rates are chosen with one seed and
`--search-epochs` on held-out rows that share no text with a training row, the best epoch on all held-out rows, the
dev set is scored once a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sherl_cache.pipeline.memory import peak_memory_bytes
from sherl_cache.pipeline.progress import size

from .accuracy import HELD_OUT, SEARCH_SEED, clean_rows
from .commands import sherl_cache, show

if TYPE_CHECKING:
    from collections.abc import Sequence

WAYS = ("lora", "full")
LORA_RANK = 8
BATCH = 32
MICRO_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin/minilm")
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--search-epochs", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs="+", help="default: 1e-3 3e-3 for lora, 1e-4 3e-4 for full")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folder", type=Path, default=Path("accuracy"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=4, metavar=("WAY", "RATE", "SEED", "EPOCHS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, rate, seed, epochs = options.one
        print(json.dumps(train(options, way, float(rate), int(seed), int(epochs))))
        return
    limit = ("--limit", str(options.limit)) if options.limit else ()
    sherl_cache(
        *("extract", "--model", options.model, "--data", options.data, "--task", options.task, *limit),
        *("--splits", f"holdout:{HELD_OUT}", "--store", str(options.folder / "cache")),
    )
    rows, figures = [], []
    for way in options.ways:
        rates = options.rates or {"lora": [1e-3, 3e-3], "full": [1e-4, 3e-4]}[way]
        rate = rates[0]
        if len(rates) > 1:
            found = {rate: alone(way, rate, SEARCH_SEED, options.search_epochs or options.epochs) for rate in rates}
            rate = max(found, key=lambda rate: found[rate]["clean"])
            print(f"{way}: { ({rate: found[rate]['clean'] for rate in rates}) }", file=sys.stderr, flush=True)
        runs = [alone(way, rate, options.first_seed + seed, options.epochs) for seed in range(options.seeds)]
        figures += runs
        values = [run["dev"] for run in runs]
        spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        rows.append(
            [
                way,
                f"{statistics.mean(values):.4f}{spread}",
                " ".join(f"{value:.4f}" for value in values),
                f"{statistics.mean(run['held_out'] for run in runs):.4f}",
                f"{rate:g}",
                f"{runs[0]['trained_parameters']:,}",
                f"{statistics.mean(run['seconds_an_epoch'] for run in runs):.1f}",
                size(max(run["peak_memory_bytes"] for run in runs)),
            ]
        )
    columns = ["way", "dev", "seeds", "held out", "rate", "trained", "s/epoch", "peak memory"]
    show(f"{options.model} on {options.task}, live, {options.epochs} epochs", columns, rows)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def alone(way: str, rate: float, seed: int, epochs: int) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.live_baselines", *sys.argv[1:]]
    done = subprocess.run(
        [*command, "--one", way, str(rate), str(seed), str(epochs)], stdout=subprocess.PIPE, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    print(
        f"{way} {rate:g} seed {seed}: held out {result['held_out']:.4f}, clean {result['clean']:.4f}", file=sys.stderr
    )
    return result


@dataclass(frozen=True)
class Rows:
    """A split as token ids."""

    names: list[str]
    ids: list[list[int]]
    types: list[list[int]] | None
    labels: list[int]


def train(options: argparse.Namespace, way: str, rate: float, seed: int, epochs: int) -> dict[str, Any]:
    """Train one model; its scores."""
    import torch

    from sherl_cache.stages.load import load_pretrained
    from sherl_cache.stages.metrics import score
    from sherl_cache.stages.optimization import TrainSettings, learning_rate_factor
    from sherl_cache.stages.tasks import TASKS
    from sherl_cache.storage import Store

    loaded = load_pretrained(options.model)
    task = TASKS[options.task]
    splits = {name: _rows(options, loaded, name) for name in ("train", "validation", "test")}
    clean = clean_rows(Store.open(options.folder / "cache"))
    torch.manual_seed(seed)
    model = _classifier(loaded.model, way, len(task.labels))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
    rows = splits["train"]
    steps_an_epoch = -(-len(rows.ids) // BATCH)
    settings = TrainSettings(epochs=epochs, learning_rate=rate, late_learning_rate=rate)
    best: dict[str, Any] = {"held_out": -1.0}
    seconds, step = 0.0, 0
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        begun = time.perf_counter()
        model.train()
        order = torch.randperm(len(rows.ids), generator=generator).tolist()
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_factor(step, steps_an_epoch * epochs, settings)
            optimizer.zero_grad(set_to_none=True)
            for some in like_length(rows, chosen, MICRO_BATCH):
                gold = torch.tensor([rows.labels[number] for number in some])
                loss: Any = torch.nn.functional.cross_entropy(model(rows, some), gold, reduction="sum") / len(chosen)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
        seconds += time.perf_counter() - begun
        held_out = splits["validation"]
        answers = model.answers(held_out)
        value = score(task.metric, answers, held_out.labels)[task.metric]
        if value > best["held_out"]:
            some = [place for place, name in enumerate(held_out.names) if name in clean]
            best = {
                "held_out": value,
                "clean": score(
                    task.metric,
                    [answers[place] for place in some],
                    [held_out.labels[place] for place in some],
                )[task.metric],
                # of the epoch that the held-out rows choose, whatever it is
                "dev": score(task.metric, model.answers(splits["test"]), splits["test"].labels)[task.metric],
            }
    return {
        "way": way,
        "rate": rate,
        "seed": seed,
        **best,
        "trained_parameters": sum(parameter.numel() for parameter in parameters),
        "seconds_an_epoch": seconds / epochs,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def like_length(rows: Rows, chosen: Sequence[int], size: int) -> list[list[int]]:
    """The chosen rows, shortest first, `size` at a time."""
    by_length = sorted(chosen, key=lambda number: len(rows.ids[number]))
    return [by_length[start : start + size] for start in range(0, len(by_length), size)]


def _rows(options: argparse.Namespace, loaded: Any, split: str) -> Rows:
    from sherl_cache.stages.labels import label_name
    from sherl_cache.stages.sources import open_source
    from sherl_cache.stages.splits import split_rules
    from sherl_cache.stages.tasks import TASKS

    task = TASKS[options.task]
    source = split_rules(open_source(options.data, task=options.task), task, f"holdout:{HELD_OUT}", limit=options.limit)
    texts: list[list[str]] = [[] for _ in task.columns]
    labels: list[int] = []
    for batch in source.batches(split, [*task.columns, task.label_column]):
        for column, name in zip(texts, task.columns, strict=True):
            column += [str(value) for value in batch[name]]
        for value in batch[task.label_column]:
            labels.append(
                int(value) if task.numbered and str(value).isdigit() else task.labels.index(label_name(value))
            )
    numbers = zip(source.row_numbers(split), labels, strict=False)  # numbers may go on for ever
    names = [str(number) for number, _ in numbers]
    encoded = loaded.tokenizer(*texts, truncation=True, max_length=loaded.table.max_length(loaded.config))
    return Rows(names, encoded["input_ids"], encoded.get("token_type_ids"), labels)


def _classifier(model: Any, way: str, classes: int) -> Any:
    """The whole model with mean pooling and a linear layer; what trains is what `way` says."""
    import torch
    from torch import Tensor, nn

    from sherl_cache.pipeline.bench.whole import with_lora
    from sherl_cache.stages.methods.contract import pool_segments
    from sherl_cache.stages.packing import padded_ids, padding_of

    if way == "lora":
        targets = [name for name, _ in model.named_modules() if name.endswith((".query", ".value"))]
        model = with_lora(model, targets, [], LORA_RANK)
    else:
        model.requires_grad_(True)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.linear = nn.Linear(model.config.hidden_size, classes)
            nn.init.normal_(self.linear.weight, std=model.config.initializer_range)
            nn.init.zeros_(self.linear.bias)

        def forward(self, rows: Rows, chosen: Sequence[int]) -> Tensor:
            ids, lengths = padded_ids([rows.ids[number] for number in chosen], 0, torch.device("cpu"))
            padding = padding_of(lengths)
            arguments = {"input_ids": ids, "attention_mask": padding.mask}
            if rows.types is not None:
                types = [rows.types[number] for number in chosen]
                arguments["token_type_ids"] = padded_ids(types, 0, torch.device("cpu"))[0]
            states = self.model(**arguments).last_hidden_state
            logits: Tensor = self.linear(pool_segments(padding.pack(states), lengths, "mean"))
            return logits

        @torch.no_grad()
        def answers(self, rows: Rows) -> list[int]:
            self.eval()
            found = [0] * len(rows.ids)
            for some in like_length(rows, range(len(rows.ids)), BATCH):
                for number, answer in zip(some, self(rows, some).argmax(1).tolist(), strict=True):
                    found[number] = answer
            return found

    return Classifier()


if __name__ == "__main__":
    main()
