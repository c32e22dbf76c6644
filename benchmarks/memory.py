"""Peak memory of one model trained three ways: stage two from a store, single-pass SHERL, full fine-tuning.

    python -m benchmarks.memory                     (T5-base from its config, batch 32)
    python -m benchmarks.memory --size small --batch 8

Weights are random: they make no difference to memory. Each way runs in a process of its own, takes the same steps
over the same examples, and reports VmHWM, with what the imports alone take beside it. All on the CPU, in float32,
AdamW.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sherl_cache.pipeline.memory import peak_memory_bytes
from sherl_cache.pipeline.progress import size

from .commands import sherl_cache, show

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = ("stage two", "single-pass SHERL", "full fine-tuning")
SIZES = {
    "mini": {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 4},
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--data", default="builtin/reviews")
    parser.add_argument("--task")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--read-budget", default="512MiB")
    parser.add_argument("--folder", type=Path, default=Path("memory"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options)))
        return
    model = options.folder / f"t5-{options.size}"
    if not model.exists():
        make_model(model, options)
    store = options.folder / f"cache-{options.size}"
    task = ("--task", options.task) if options.task else ()
    limit = ("--limit", str(options.batch * options.steps))
    sherl_cache("extract", "--model", str(model), "--data", options.data, *task, *limit, "--store", str(store))
    results = {}
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--way", way], stdout=subprocess.PIPE, check=True
        )
        results[way] = json.loads(done.stdout)
    whole = results["full fine-tuning"]["net_bytes"]
    rows = [
        [
            way,
            size(found["peak_bytes"]),
            size(found["imports_bytes"]),
            size(found["net_bytes"]),
            f"{found['net_bytes'] / whole:.3f}",
            f"{found['net_bytes'] / results['single-pass SHERL']['net_bytes']:.3f}",
            f"{found['seconds_a_step']:.2f}",
            f"{found['trained_parameters']:,}",
        ]
        for way, found in results.items()
    ]
    show(
        f"T5-{options.size} from its config, batch {options.batch}, {options.steps} steps, {options.data}, float32 on the CPU",
        ["way", "peak", "imports", "net", "of full", "of single-pass", "s/step", "trained"],
        rows,
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train one way for a few steps and read the peak of this process."""
    import torch

    from sherl_cache.pipeline import training  # noqa: F401  (what every way imports)

    imports = peak_memory_bytes()
    begun, steps, trained = time.perf_counter(), 0, 0
    way = {"stage two": stage_two_losses, "single-pass SHERL": single_pass_losses, "full fine-tuning": full_losses}
    optimizer: torch.optim.Optimizer | None = None
    for parameters, loss in way[options.way](options):
        if optimizer is None:
            optimizer = torch.optim.AdamW(parameters, lr=1e-4)
            trained = sum(parameter.numel() for parameter in parameters)
            begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
    peak = peak_memory_bytes()
    return {
        "peak_bytes": peak,
        "imports_bytes": imports,
        "net_bytes": peak - imports,
        "seconds_a_step": (time.perf_counter() - begun) / max(steps - 1, 1),
        "steps": steps,
        "trained_parameters": trained,
    }


def stage_two_losses(options: argparse.Namespace) -> Iterator[tuple[list[Any], Any]]:
    """Batches from the store; the early layers are not loaded."""
    import torch

    from sherl_cache.pipeline.objectives import choose_objective
    from sherl_cache.pipeline.reading import store_batches
    from sherl_cache.pipeline.recipe import load_recipe
    from sherl_cache.pipeline.training import stage_two
    from sherl_cache.storage import ReadBuffers, Store

    store = Store.open(options.folder / f"cache-{options.size}")
    recipe = load_recipe("sherl", (f"data.batch_examples={options.batch}", f"data.read_budget={options.read_budget}"))
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}"))
    objective = choose_objective(recipe, model, "classification")
    parameters = list(model.trained_parameters().values())
    buffers = ReadBuffers(int(recipe.data.read_budget))
    for batch in store_batches(recipe, store, model, "train", torch.device("cpu"), buffers).epoch(0):
        loss = objective(model(batch.inputs, batch.select, batch.segments), batch.targets)
        yield parameters, loss.sum / loss.weight


def single_pass_losses(options: argparse.Namespace) -> Iterator[tuple[list[Any], Any]]:
    """The same fusion and late layer hung into the live model: every step runs the early layers."""
    import torch

    from sherl_cache.pipeline.objectives import choose_objective
    from sherl_cache.pipeline.recipe import load_recipe
    from sherl_cache.pipeline.training import stage_two
    from sherl_cache.stages.late_weights import late_weights
    from sherl_cache.stages.live import LiveModel
    from sherl_cache.stages.load import load_pretrained
    from sherl_cache.stages.methods.contract import Targets
    from sherl_cache.stages.tokens import TokenBatch
    from sherl_cache.storage import Store

    loaded = load_pretrained(str(options.folder / f"t5-{options.size}"))
    store = Store.open(options.folder / f"cache-{options.size}")
    recipe = load_recipe("sherl")
    model = stage_two(recipe, store.producer, late_weights(loaded, store.producer["late"]).__getitem__)
    objective = choose_objective(recipe, model, "classification")
    live = LiveModel(loaded, model)
    parameters = list(model.trained_parameters().values())
    for inputs, answers in token_batches(store, options.batch):
        output = live.forward(TokenBatch(inputs, None, [[answer] for answer in answers]))
        tokens = torch.tensor([token for answer in answers for token in answer])
        loss = objective(output, Targets(tokens=tokens))
        yield parameters, loss.sum / loss.weight


def full_losses(options: argparse.Namespace) -> Iterator[tuple[list[Any], Any]]:
    """Every weight trains, in the model's own forward."""
    import torch
    from transformers import T5ForConditionalGeneration

    from sherl_cache.stages.packing import padded_ids
    from sherl_cache.storage import Store

    model = T5ForConditionalGeneration.from_pretrained(options.folder / f"t5-{options.size}").train()
    store = Store.open(options.folder / f"cache-{options.size}")
    device = torch.device("cpu")
    parameters = list(model.parameters())
    for inputs, answers in token_batches(store, options.batch):
        ids, lengths = padded_ids(inputs, 0, device)
        labels, _ = padded_ids(answers, -100, device)
        mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long()
        yield parameters, model(input_ids=ids, attention_mask=mask, labels=labels).loss


def token_batches(store: Any, batch: int) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """Token ids of the training examples, and of their right answers."""
    for table in store.examples("train").batches(["input_ids", "target_ids", "gold"]):
        for start in range(0, len(table), batch):
            part = table.slice(start, batch).to_pydict()
            yield part["input_ids"], [ids[gold] for ids, gold in zip(part["target_ids"], part["gold"], strict=True)]


def make_model(folder: Path, options: argparse.Namespace) -> None:
    """A T5 of the published shape with random weights, and a tokenizer with one piece for each word of the data."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    from sherl_cache.stages.sources import open_source
    from sherl_cache.stages.tasks import task_for

    source = open_source(options.data, task=options.task)
    column = task_for(options.task, source).columns[0]
    words: dict[str, None] = {}
    for batch in source.batches("train", [column]):
        words.update(dict.fromkeys(word for text in batch[column] for word in text.split()))
        if len(words) > 20_000:
            break
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -3.0) for word in words] + [(chr(code), -6.0) for code in range(33, 127)]
    tokenizer = T5Tokenizer(vocab=pieces[:32_000], extra_ids=0, model_max_length=512)
    config = T5Config.from_dict({"vocab_size": 32_128, "decoder_start_token_id": 0, **SIZES[options.size]})
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
