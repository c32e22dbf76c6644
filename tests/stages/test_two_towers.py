"""A model of two towers: each cut anywhere gives its own embeddings; one alone is a backbone like any other."""

import copy
from functools import cache
from tempfile import mkdtemp

import pytest
import torch
from live_oracle import fuse, redraw, watch
from model_cases import cached, producer_of, redraw_norms
from safetensors.torch import load
from tiny_pictures import SIDE, tiny_clip
from torch import Tensor
from transformers import AutoModel

from sherl_cache.stages.backbones.contract import table_for
from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.front import Front, TokenBatch, prove_split
from sherl_cache.stages.late import build_late
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.load import LoadedModel, load_pretrained
from sherl_cache.stages.model_config import config_from_json


@cache
def loaded() -> LoadedModel:
    return load_pretrained(str(redraw_norms(tiny_clip(mkdtemp(prefix="tiny-clip-")))), dtype="float64")


def pairs() -> TokenBatch:
    tokenizer = loaded().tokenizer
    texts = tokenizer(["a dog", "two grey cats asleep", "x"]).input_ids
    generator = torch.Generator().manual_seed(4)
    return TokenBatch(texts, pixels=torch.randn(3, 3, SIDE, SIDE, generator=generator))


def padded(texts: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, texts))
    pad = loaded().config.text_config.pad_token_id
    ids = torch.tensor([text + [pad] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


def test_keys_of_inner_configs_that_could_name_code_are_dropped() -> None:
    document = loaded().config_document()
    inner = {**document["vision_config"], "auto_map": {"AutoModel": "x--y.Z"}, "_attn_implementation": "owner/kernel"}
    config = config_from_json("clip", {**document, "vision_config": {**inner, "surprise": 1}})
    assert not {"auto_map", "surprise"} & set(vars(config.vision_config))
    assert config.vision_config._attn_implementation != "owner/kernel"
    assert config.vision_config.hidden_size == 16


@pytest.mark.parametrize("late", [1, 2])
def test_both_towers_from_cached_states_meet_where_the_whole_model_does(late: int) -> None:
    """Oracle: the embeddings of the library's model; ours are late layers, norms and projections from stored files."""
    model, batch = loaded(), pairs()
    table, files = model.table, late_weights(model, late)
    rebuilt = config_from_json(model.config.model_type, model.config_document())
    parts = build_late(table, rebuilt, files.__getitem__, late, dtype=torch.float64)
    cuts = {stream.name: (table.depth(model.config, stream.name) - late,) for stream in table.streams}
    assert {name: cut[0] + late for name, cut in cuts.items()} == {"vision": 3, "text": 4}
    packed = Front(model, cuts)(batch)
    assert {name: taps.taps.shape[-1] for name, taps in packed.items()} == {"vision": 16, "text": 12}
    states = parts.late({n: t.rows for n, t in packed.items()}, {n: t.lengths for n, t in packed.items()}, {})
    rest = load(files["rest.safetensors"])
    found = {}
    for name, pooled in (("vision", 0), ("text", -1)):
        rows = parts.norms[name](states[name]).split(packed[name].lengths.tolist())
        projection = rest[{"vision": "visual_projection.weight", "text": "text_projection.weight"}[name]]
        found[name] = torch.nn.functional.normalize(torch.stack([row[pooled] for row in rows]) @ projection.T, dim=1)
    whole = model.model(pixel_values=batch.pixels, **padded(batch.input_ids))
    torch.testing.assert_close(found["vision"], whole.image_embeds, rtol=0, atol=1e-10)
    torch.testing.assert_close(found["text"], whole.text_embeds, rtol=0, atol=1e-10)


@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("streams", [("vision", "text"), ("vision",), ("text",)])
def test_split_is_proved_of_both_and_of_each(streams: tuple[str, ...], late: int) -> None:
    prove_split(loaded().only(streams), pairs(), late)


def test_one_tower_alone_stores_nothing_of_the_other() -> None:
    files = late_weights(loaded().only(["vision"]), 2)
    names = [name for data in files.values() for name in load(data)]
    assert names
    assert not [name for name in names if name.startswith("text")]
    pooling = {name: table_for(loaded().config).only([name]).pooling for name in ("vision", "text")}
    assert pooling == {"vision": "cls", "text": "last"}


@pytest.mark.parametrize("mode", ["frozen", "full"])
@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("fusion", ["sherl", "last"])
def test_cached_logits_and_gradients_equal_live_tower(fusion: str, late: int, mode: str) -> None:
    """Oracle: the library's vision model with hooks of this test."""
    tower, batch = loaded().only(["vision"]), pairs()
    files, producer = late_weights(tower, 2), producer_of(tower)
    producer["model"]["streams"] = ["vision"]
    recipe = StageTwoRecipe(fusion=fusion, late=late, mode=mode)
    stage_two = build_stage_two(producer, files.__getitem__, recipe, 0, dtype=torch.float64)
    redraw(stage_two, seed=3)
    found = stage_two(cached(tower, stage_two, [TokenBatch(pixels=batch.pixels[n : n + 1]) for n in range(3)]))
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weights).sum().backward()

    model = AutoModel.from_pretrained(tower.name, dtype=torch.float64).eval().requires_grad_(False).vision_model
    layers, own = model.encoder.layers, copy.deepcopy(stage_two)
    own.zero_grad()
    states, taps = watch(layers), stage_two.reads["vision"]
    modules = {"fusion": own.fusion, "head": own.head, "norm.vision": own.norm["vision"]}
    for index, layer in (own.late.stream("vision").layers if own.late else {}).items():
        layers[index].load_state_dict(layer.state_dict())
        modules[f"late.vision.{index}"] = layers[index].requires_grad_(mode == "full")
    if late:
        layers[len(layers) - late].register_forward_pre_hook(
            lambda module, args: (fuse(own.fusion, "vision", states, taps), *args[1:])
        )
    output = model(pixel_values=batch.pixels).last_hidden_state
    rows = output if late else fuse(own.fusion, "vision", states, taps)
    expected = own.head.linear(own.norm["vision"](rows[:, 0]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    (expected * weights).sum().backward()
    live = {f"{n}.{p}": v.grad for n, module in modules.items() for p, v in module.named_parameters()}
    for name, parameter in stage_two.trained_parameters().items():
        torch.testing.assert_close(parameter.grad, live[name], rtol=0, atol=1e-10)
    torch.testing.assert_close(LiveModel(tower, stage_two).logits(batch), found.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("tuner", ["prompt", "prefix", "lora", "u_adapter"])
@pytest.mark.parametrize("stream", ["vision", "text"])
def test_a_tuned_tower_computes_live_what_it_does_from_cached_states(stream: str, tuner: str) -> None:
    tower, batch = loaded().only([stream]), pairs()
    producer = producer_of(tower)
    producer["model"]["streams"] = [stream]
    recipe = StageTwoRecipe(late=2, tuner=tuner, tuner_options={"length": 5} if tuner == "prompt" else {})
    stage_two = build_stage_two(producer, late_weights(tower, 2).__getitem__, recipe, 0, dtype=torch.float64)
    redraw(stage_two, seed=3)
    given = TokenBatch(pixels=batch.pixels) if stream == "vision" else TokenBatch(batch.input_ids)
    with torch.no_grad():
        found = stage_two.eval()(cached(tower, stage_two, [given]))
    torch.testing.assert_close(LiveModel(tower, stage_two).logits(given), found, rtol=0, atol=1e-10)
