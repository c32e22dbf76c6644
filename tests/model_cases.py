"""What the tests of the model share: tiny models, parts of their stores, ragged batches."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_bert, tiny_distilbert, tiny_roberta, tiny_t5
from tiny_pictures import SIDE, tiny_deit, tiny_dinov2, tiny_vit

from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.front import Front, TokenBatch
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.load import LoadedModel, load_pretrained
from sherl_cache.stages.methods.contract import Packed
from sherl_cache.stages.model import StageTwo

MAKERS: dict[str, Callable[..., Path]] = {
    "bert": tiny_bert,
    "roberta": tiny_roberta,
    "distilbert": tiny_distilbert,
    "t5": tiny_t5,
    "vit": tiny_vit,
    "deit": tiny_deit,
    "dinov2": tiny_dinov2,
}
PICTURES = ("vit", "deit", "dinov2")
ENCODERS = ("bert", "roberta", "distilbert", *PICTURES)


@cache
def folder_of(family: str, **config: Any) -> Path:
    """A tiny model's folder, made once; every norm is redrawn, so that a forgotten or a swapped one shows."""
    folder = MAKERS[family](mkdtemp(prefix=f"tiny-{family}-"), **config)
    return redraw_norms(folder)


def redraw_norms(folder: Path) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in sorted(tensors.items()):
        if "norm" in name.lower() and name.endswith("weight"):
            tensors[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@cache
def loaded_model(family: str, dtype: str = "float32", **config: Any) -> LoadedModel:
    return load_pretrained(str(folder_of(family, **config)), dtype=dtype)


def producer_of(loaded: LoadedModel, late: int = 2) -> dict[str, Any]:
    """What a store says of this model, after a passage through JSON."""
    answers = "text" if loaded.table.text_form == "continuation" else None
    model = {"model_type": loaded.config.model_type, "config": loaded.config_document(), "answers": answers}
    task = {"kind": "classification", "labels": ["negative", "neutral", "positive"]}
    return json.loads(json.dumps({"model": model, "task": task, "late": late}))


def stage_two_of(
    loaded: LoadedModel, recipe: StageTwoRecipe, dtype: torch.dtype = torch.float32, seed: int = 0
) -> StageTwo:
    files = late_weights(loaded, 2)
    return build_stage_two(producer_of(loaded), files.__getitem__, recipe, seed, dtype=dtype)


def ragged_batch(family: str, lengths: Sequence[int] = (5, 1, 9, 3, 7), seed: int = 0) -> TokenBatch:
    """Random texts of these lengths; token types for the family that has two; two ragged answers each for a
    decoder. As many random pictures for a family that reads them."""
    generator = torch.Generator().manual_seed(seed)
    if family in PICTURES:
        return TokenBatch(pixels=torch.randn(len(lengths), 3, SIDE, SIDE, generator=generator))

    def ids(length: int) -> list[int]:
        return torch.randint(5, 200, (length,), generator=generator).tolist()

    texts = [ids(length) for length in lengths]
    types = [[int(place > length // 2) for place in range(length)] for length in lengths]
    answers = [[[*ids(1 + number % 3), 1], [*ids(1), 1]] for number in range(len(lengths))]
    return TokenBatch(texts, types if family == "bert" else None, answers if family == "t5" else None)


def part(batch: TokenBatch, chosen: Sequence[int]) -> TokenBatch:
    if batch.pixels is not None:
        return TokenBatch(pixels=batch.pixels[list(chosen)])
    return TokenBatch(
        *(
            None if column is None else [column[number] for number in chosen]
            for column in (batch.input_ids, batch.token_type_ids, batch.targets)
        )
    )


def cached(loaded: LoadedModel, stage_two: StageTwo, batches: Sequence[TokenBatch]) -> dict[str, Packed]:
    """Taps as a store gives them: run batch by batch, then joined to one packed batch."""
    front = Front(loaded, stage_two.reads)
    runs = [front(batch) for batch in batches]
    return {
        name: Packed(
            torch.cat([run[name].taps for run in runs], dim=1), torch.cat([run[name].lengths for run in runs]), taps
        )
        for name, taps in stage_two.reads.items()
    }
