"""A vision transformer trained here from scratch on the digits 0 to 4, adapted to 5 to 9 by every method.

    python -m benchmarks.digits

scikit-learn's 1,797 real handwritten digits, 8x8, need no network. First a small ViT learns the digits 0 to 4; it is saved with
an image processor, and the digits 5 to 9 are written as pictures into folders, a fifth of them for the test. Then
`benchmarks.methods` adapts it, with the arguments that it is given here; beside it LoRA on all layers (peft) and full
fine-tuning of the live model, with the same grid, epochs and held-out pictures.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from sherl_cache.pipeline.memory import peak_memory_bytes
from sherl_cache.pipeline.progress import size

from .commands import show

HELD_OUT = 150
BATCH = 32
LORA_RANK = 8
WAYS = ("LoRA, all layers", "full fine-tuning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--folder", type=Path, default=Path("digits"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "RATE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, rate, seed = options.one
        print(json.dumps(train_live(options, way, float(rate), int(seed))))
        return
    if not (options.folder / "model").exists():
        print(f"accuracy on unseen digits 0 to 4: {make_model(options.folder / 'model'):.3f}")
        write_pictures(options.folder / "pictures")
    arguments = [
        *(
            "--model",
            str(options.folder / "model"),
            "--data",
            str(options.folder / "pictures"),
            "--held-out",
            str(HELD_OUT),
        ),
        *(
            "--epochs",
            str(options.epochs),
            "--seeds",
            str(options.seeds),
            "--folder",
            str(options.folder),
            "--late",
            "6",
        ),
        *("--rates", *map(str, options.rates)),
    ]
    if options.json:
        arguments += ["--json", str(options.json)]
    subprocess.run([sys.executable, "-m", "benchmarks.methods", *arguments], check=True)
    rows, records = [], []
    for way in WAYS:
        runs = {rate: [_alone(way, rate, seed) for seed in range(options.seeds)] for rate in options.rates}
        rate = max(runs, key=lambda rate: statistics.mean(run["held_out"] for run in runs[rate]))
        dev = [run["dev"] for run in runs[rate]]
        spread = f" +- {statistics.stdev(dev):.4f}" if len(dev) > 1 else ""
        record = {
            "recipe": way,
            "rate": rate,
            "dev": dev,
            "held_out": statistics.mean(run["held_out"] for run in runs[rate]),
            "trained_parameters": runs[rate][0]["trained_parameters"],
            "seconds_an_epoch": statistics.median(run["seconds_an_epoch"] for run in runs[rate]),
            "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs[rate]),
        }
        records.append(record)
        rows.append(
            [
                way,
                f"{statistics.mean(dev):.4f}{spread}",
                f"{record['held_out']:.4f}",
                f"{rate:g}",
                f"{record['trained_parameters']:,}",
                f"{record['seconds_an_epoch']:.1f}",
                size(record["peak_memory_bytes"]),
            ]
        )
    if options.json:
        options.json.write_text(json.dumps(json.loads(options.json.read_text()) + records, indent=1))
    show("live", ["way", "dev", "held out", "rate", "trained", "s/epoch", "peak memory"], rows)


def make_model(folder: Path) -> float:
    """Train a ViT on the digits 0 to 4 and save it with its processor; its accuracy on a fifth that it did not see."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    pixels, labels = _digits(range(5))
    cut = len(labels) * 4 // 5
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=384,
    )
    config.num_labels = 5
    model: Any = ViTForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    values, gold = _normalised(pixels), torch.from_numpy(labels)
    for _ in range(40):
        order: Any = torch.randperm(cut)
        for chosen in order.split(BATCH):
            loss = model(pixel_values=values[chosen], labels=gold[chosen]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(pixel_values=values[cut:]).logits.argmax(1) == gold[cut:]
    model.vit.save_pretrained(folder)
    processor = ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=True
    )
    processor.save_pretrained(folder)
    return float(right.float().mean())


def write_pictures(folder: Path) -> None:
    """The digits 5 to 9 as PNG files in folders by class; every fifth is for the test."""
    from PIL import Image

    pixels, labels = _digits(range(5, 10))
    for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / ("test" if number % 5 == 0 else "train") / f"{label + 5}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{number:04d}.png")


def train_live(options: argparse.Namespace, way: str, rate: float, seed: int) -> dict[str, Any]:
    """Train the whole live model one way: scores of the epoch that the held-out pictures choose."""
    import torch
    from transformers import ViTForImageClassification

    from sherl_cache.pipeline.bench.whole import with_lora
    from sherl_cache.stages.load import quiet_transformers
    from sherl_cache.stages.optimization import TrainSettings, learning_rate_factor

    torch.manual_seed(seed)
    pixels, labels = _digits(range(5, 10))
    test = np.arange(len(labels)) % 5 == 0
    rest = np.random.default_rng(0).permutation(np.flatnonzero(~test))
    held_out, train = rest[:HELD_OUT], rest[HELD_OUT:]
    values, gold = _normalised(pixels), torch.from_numpy(labels)
    with quiet_transformers():  # the head of the new classes is new, as it should be
        model: Any = ViTForImageClassification.from_pretrained(options.folder / "model", num_labels=5)
    if way == WAYS[0]:
        targets = [name for name, _ in model.named_modules() if name.endswith(("q_proj", "v_proj"))]
        model = with_lora(model, targets, ["classifier"], LORA_RANK)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    total = options.epochs * -(-len(train) // BATCH)
    settings = TrainSettings(epochs=options.epochs, learning_rate=rate, late_learning_rate=rate)
    best = {"held_out": -1.0, "dev": 0.0}
    seconds, step = 0.0, 0

    def accuracy(rows: Any) -> float:
        model.eval()
        with torch.no_grad():
            return float((model(pixel_values=values[rows]).logits.argmax(1) == gold[rows]).float().mean())

    for _ in range(options.epochs):
        begun = time.perf_counter()
        model.train()
        order: Any = torch.from_numpy(train)[torch.randperm(len(train))]
        for chosen in order.split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_factor(step, total, settings)
            loss = model(pixel_values=values[chosen], labels=gold[chosen]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
        seconds += time.perf_counter() - begun
        found = accuracy(held_out)
        if found > best["held_out"]:
            best = {"held_out": found, "dev": accuracy(np.flatnonzero(test))}
    return {
        **copy.copy(best),
        "trained_parameters": sum(parameter.numel() for parameter in parameters),
        "seconds_an_epoch": seconds / options.epochs,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _alone(way: str, rate: float, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.digits", *sys.argv[1:], "--one", way, str(rate), str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _digits(classes: range) -> tuple[Any, Any]:
    """Pictures uint8 [N, 8, 8, 3] of some classes in a seeded order, and their labels from 0 on, int64 [N]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(digits.target, list(classes))))
    pictures = np.minimum(digits.images[chosen] * 16, 255).astype(np.uint8)
    return np.repeat(pictures[..., None], 3, axis=-1), (digits.target[chosen] - classes.start).astype(np.int64)


def _normalised(pictures: Any) -> Any:
    """[N, 8, 8, 3] of 0 to 255 -> float32 [N, 3, 8, 8] of -1 to 1, as the processor gives them."""
    import torch

    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main()
