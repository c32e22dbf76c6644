"""Two towers trained together: from cached states of both they compute what the model of the library does, live."""

import copy
from functools import cache
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from live_oracle import fuse, redraw, watch
from model_cases import cached, producer_of, redraw_norms
from tiny_pictures import SIDE, tiny_clip
from torch import Tensor
from transformers import AutoModel

from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.load import LoadedModel, load_pretrained
from sherl_cache.stages.methods.contract import Pair, Targets
from sherl_cache.stages.methods.objective.contrastive import Contrastive
from sherl_cache.stages.metrics import retrieval_scores
from sherl_cache.stages.model import StageTwo
from sherl_cache.stages.retrieval import PairVectors
from sherl_cache.stages.tokens import TokenBatch
from sherl_cache.storage.errors import RecipeError

CAPTIONS = (2, 1, 3)
"""Captions of each of three pictures."""
GROUPS = (torch.arange(3), torch.arange(3).repeat_interleave(torch.tensor(CAPTIONS)))


@cache
def loaded(dtype: str = "float64") -> LoadedModel:
    return load_pretrained(str(redraw_norms(tiny_clip(mkdtemp(prefix="tiny-clip-")))), dtype=dtype)


def pairs() -> TokenBatch:
    texts = ["a dog", "it barks", "two grey cats asleep", "x", "an x", "a letter on a wall"]
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    return TokenBatch(loaded().tokenizer(texts).input_ids, pixels=pixels)


def stage_two_of(recipe: StageTwoRecipe, dtype: torch.dtype = torch.float64) -> StageTwo:
    producer = producer_of(loaded())
    producer["task"] = {"kind": "retrieval", "labels": []}
    model = build_stage_two(producer, late_weights(loaded(), 2).__getitem__, recipe, 0, dtype=dtype)
    redraw(model, seed=3)
    return model


def contrast(pair: Pair) -> Tensor:
    loss = Contrastive.from_options({})(pair, Targets(groups=GROUPS))
    return loss.sum / loss.weight


def live_tower(
    stage_two: StageTwo, name: str, tower: Any, arguments: dict[str, Tensor], modules: dict[str, Any]
) -> Tensor:
    """Rows [B, T, D] before pooling, after the norm; `modules` takes what trains."""
    layers, late, taps = tower.encoder.layers, stage_two.recipe.late, stage_two.reads[name]
    fusion, states = modules["fusion"], watch(tower.encoder.layers)
    for index, layer in (stage_two.late.stream(name).layers if late else {}).items():
        layers[index].load_state_dict(layer.state_dict())
        modules[f"late.{name}.{index}"] = layers[index].requires_grad_(stage_two.recipe.mode == "full")
    if late:
        layers[len(layers) - late].register_forward_pre_hook(
            lambda module, args: (fuse(fusion, name, states, taps), *args[1:])
        )
    ends: list[Tensor] = []
    layers[-1].register_forward_hook(
        lambda module, args, output: ends.append(output[0] if isinstance(output, tuple) else output)
    )
    tower(**arguments)
    rows = ends[0] if late else fuse(fusion, name, states, taps)
    if name not in stage_two.norm:
        return rows
    norm = modules[f"norm.{name}"] = copy.deepcopy(stage_two.norm[name])
    return norm(rows)


def live_pair(stage_two: StageTwo, batch: TokenBatch) -> tuple[Pair, dict[str, Tensor]]:
    """Vectors of the library's model, and gradients by stage two's names."""
    model = AutoModel.from_pretrained(loaded().name, dtype=torch.float64).eval().requires_grad_(False)
    own = copy.deepcopy(stage_two)
    own.zero_grad()
    modules: dict[str, Any] = {"fusion": own.fusion, "head": own.head}
    longest, pad = max(map(len, batch.input_ids)), model.config.text_config.pad_token_id
    ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in batch.input_ids])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch.input_ids])
    pictures = live_tower(own, "vision", model.vision_model, {"pixel_values": batch.pixels}, modules)[:, 0]
    texts = live_tower(own, "text", model.text_model, {"input_ids": ids, "attention_mask": mask}, modules)
    last = texts[torch.arange(len(texts)), mask.sum(1) - 1]
    first, second = (
        projected / projected.norm(dim=1, keepdim=True)
        for projected in (pictures @ own.head.first.weight.T, last @ own.head.second.weight.T)
    )
    pair = Pair(first, second, own.head.log_scale.exp())
    contrast(pair).backward()
    named = {f"{n}.{p}": v.grad for n, module in modules.items() for p, v in module.named_parameters()}
    return pair, {name: grad for name, grad in named.items() if grad is not None}


@pytest.mark.parametrize(
    ("fusion", "late", "mode"),
    [("sherl", 0, "frozen"), ("sherl", 1, "full"), ("sherl", 2, "frozen"), ("last", 0, "frozen"), ("last", 2, "full")],
)
def test_cached_vectors_and_gradients_equal_the_live_model(fusion: str, late: int, mode: str) -> None:
    batch, stage_two = pairs(), stage_two_of(StageTwoRecipe(fusion=fusion, late=late, mode=mode))
    assert set(stage_two.reads) == {"vision", "text"}
    found = stage_two(cached(loaded(), stage_two, [batch]))
    contrast(found).backward()
    expected, gradients = live_pair(stage_two, batch)
    torch.testing.assert_close(found.first, expected.first, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.second, expected.second, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.scale, expected.scale, rtol=0, atol=1e-10)
    trained = stage_two.trained_parameters()
    assert {name.split(".")[0] for name in trained} >= {"head"} | ({"late"} if mode == "full" else set())
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-10)
    again = LiveModel(loaded(), stage_two).logits(batch)
    torch.testing.assert_close(again.first, found.first.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(again.second, found.second.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("fusion", "options", "late", "tuner"),
    [
        ("sherl", {"preset": "clip4clip", "bottleneck": 6}, 0, None),
        ("unipt", {}, 0, None),
        ("weighted_sum", {}, 1, "lora"),
        ("last", {}, 2, "prefix"),
        ("last", {}, 1, "prompt"),
    ],
)
def test_other_methods_compute_live_what_they_do_from_cached_states(
    fusion: str, options: dict[str, Any], late: int, tuner: str | None
) -> None:
    batch = pairs()
    tuned = {"length": 4} if tuner == "prompt" else {}
    recipe = StageTwoRecipe(fusion=fusion, fusion_options=options, late=late, tuner=tuner, tuner_options=tuned)
    stage_two = stage_two_of(recipe).eval()
    with torch.no_grad():
        found = stage_two(cached(loaded(), stage_two, [batch]))
    live = LiveModel(loaded(), stage_two).logits(batch)
    torch.testing.assert_close(live.first, found.first, rtol=0, atol=1e-10)
    torch.testing.assert_close(live.second, found.second, rtol=0, atol=1e-10)
    assert found.first.shape == (3, 10)
    assert found.second.shape == (6, 10)


@pytest.mark.parametrize("late", [0, 2])
def test_without_a_fusion_training_starts_from_the_models_own_embeddings(late: int) -> None:
    """Oracle: the embeddings of the library's model."""
    batch = pairs()
    producer = producer_of(loaded())
    producer["task"] = {"kind": "retrieval", "labels": []}
    recipe = StageTwoRecipe(fusion="last", late=late)
    stage_two = build_stage_two(producer, late_weights(loaded(), 2).__getitem__, recipe, 0, dtype=torch.float64).eval()
    longest, pad = max(map(len, batch.input_ids)), loaded().config.text_config.pad_token_id
    ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in batch.input_ids])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch.input_ids])
    with torch.no_grad():
        whole = loaded().model(pixel_values=batch.pixels, input_ids=ids, attention_mask=mask)
        found = stage_two(cached(loaded(), stage_two, [batch]))
    torch.testing.assert_close(found.first, whole.image_embeds, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.second, whole.text_embeds, rtol=0, atol=1e-10)


def test_projections_start_anew_where_asked_or_where_the_models_own_do_not_fit() -> None:
    own = stage_two_of(StageTwoRecipe()).head
    assert own.first.weight.shape == (10, 16)
    assert stage_two_of(StageTwoRecipe(head_options={"start": "new"})).head.first.weight.shape == (256, 16)
    assert stage_two_of(StageTwoRecipe(head_options={"width": 7})).head.second.weight.shape == (7, 12)
    with pytest.raises(RecipeError, match="lead from rows of 16 and 12 to 10"):
        stage_two_of(StageTwoRecipe(head_options={"width": 7, "start": "pretrained"}))


def test_each_stream_is_pooled_as_its_tower_is_and_alone_reads_one_row() -> None:
    head = stage_two_of(StageTwoRecipe()).head
    lengths = torch.tensor([4, 7])
    assert head.reads(lengths).tolist() == [0, 0]
    assert head.reads(lengths, 1).tolist() == [3, 6]
    mean = stage_two_of(StageTwoRecipe(head_options={"pooling": "mean"})).head
    assert mean.reads(lengths) is None
    assert mean.reads(lengths, 1) is None


def test_in_float32_cached_equals_live_to_rounding() -> None:
    batch, stage_two = pairs(), stage_two_of(StageTwoRecipe(), torch.float32)
    with torch.no_grad():
        found = stage_two(cached(loaded("float32"), stage_two, [batch]))
    exact = live_pair(stage_two.double(), batch)[0]
    for of_store, live in ((found.first, exact.first.detach()), (found.second, exact.second.detach())):
        assert float((of_store - live).abs().max()) <= 1e-5 * max(1.0, float(live.abs().max()))


def test_a_head_for_classes_is_refused() -> None:
    with pytest.raises(RecipeError, match="this task is one of retrieval"):
        stage_two_of(StageTwoRecipe(head="classifier"))


def test_scores_of_gathered_vectors_equal_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: metrics.retrieval_scores over the similarities of each picture once and all captions."""
    monkeypatch.setattr("sherl_cache.stages.retrieval.QUERIES", 3)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(count, 5, generator=generator) for count in (8, 20))
    pictures = torch.arange(8)
    captions = torch.cat([pictures, torch.randint(0, 8, (12,), generator=generator)])
    expected = retrieval_scores((first @ second.T).numpy(), pictures.numpy(), captions.numpy())
    vectors = PairVectors()
    for rows, texts in ((slice(0, 3), slice(0, 9)), (slice(3, 8), slice(9, 20))):
        vectors.add(Pair(first[rows], second[texts], torch.ones(())), (pictures[rows], captions[texts]))
    vectors.add(Pair(first[2:4], second[:0], torch.ones(())), (pictures[2:4], captions[:0]))  # shown a second time
    found, ranks = vectors.scores()
    assert found == expected
    assert ranks[8:].tolist() == ranks[2:4].tolist()
    assert float((ranks[:8] <= 5).mean()) == pytest.approx(expected["first_to_second_recall@5"])


def test_vectors_that_are_no_numbers_find_nothing() -> None:
    vectors, groups = PairVectors(), torch.arange(20)
    vectors.add(Pair(torch.full((20, 3), torch.nan), torch.randn(20, 3), torch.ones(())), (groups, groups))
    assert vectors.scores()[0]["recall"] == 0.0
