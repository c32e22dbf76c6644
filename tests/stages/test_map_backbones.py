"""Tables of models whose states are maps: each drives a tiny model of its type; taps of several widths through every fusion.

The oracle is the library's own model, its stages read by hooks of this file, and pooled window by window.
"""

import copy
import math
import re
from typing import Any

import pytest
import torch
import transformers
from live_oracle import redraw
from model_cases import producer_of
from tiny_pictures import MAP_CONFIGS, MAP_SIDE, redraw_statistics
from torch import Tensor, nn
from transformers import AutoConfig

from sherl_cache.stages import plugins
from sherl_cache.stages.backbones.contract import table_for
from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.front import Front, TokenBatch, prove_split
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.load import LoadedModel, weights_digest
from sherl_cache.stages.maps import MapForm
from sherl_cache.stages.methods.contract import Packed
from sherl_cache.stages.model import StageTwo
from sherl_cache.storage.errors import ModelError, RecipeError

every_type = pytest.mark.parametrize("model_type", MAP_CONFIGS)
ANY_WIDTHS: dict[str, dict[str, Any]] = {
    "sherl": {"reduction": 2},
    "sherl vse_image": {"preset": "vse_image", "bottleneck": 6},
    "sherl clip4clip": {"preset": "clip4clip", "bottleneck": 6},
    "head2toe": {"keep": 1.0},
    "unipt": {"reduction": 2},
    "side": {"hidden": 6},
    "last": {},
}


def tiny_model(model_type: str, dtype: torch.dtype = torch.float64, **config: Any) -> LoadedModel:
    known = AutoConfig.for_model(model_type, **{**MAP_CONFIGS[model_type], **config})
    table = table_for(known)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto = getattr(transformers, table.auto_class)
        model = auto.from_config(known, attn_implementation=table.attention, **table.options).eval()
    model = redraw_statistics(model).to(dtype).requires_grad_(False)
    return LoadedModel(model_type, model, None, table, None, weights_digest(model))


def pictures(count: int = 3, height: int = MAP_SIDE, width: int = MAP_SIDE) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def maps_of(model: nn.Module, pixels: Tensor) -> list[Tensor]:
    """h00 to hL of the library's own forward."""
    found = []
    stages = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    handles = [stages[0].register_forward_pre_hook(lambda module, args: found.append(args[0]))]
    handles += [stage.register_forward_hook(lambda module, args, output: found.append(output)) for stage in stages]
    model(pixel_values=pixels.to(model.dtype))
    for handle in handles:
        handle.remove()
    return found


def pooled(state: Tensor, grid: tuple[int, int], pooling: str) -> Tensor:
    """[B, C, H, W] -> [B, h * w, C], cell by cell: rows and columns from floor(i H / h) to ceil((i + 1) H / h)."""
    height, width = state.shape[-2:]
    cells = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            cell = state[
                :,
                :,
                row * height // grid[0] : math.ceil((row + 1) * height / grid[0]),
                column * width // grid[1] : math.ceil((column + 1) * width / grid[1]),
            ]
            average = cell.mean((2, 3))
            cells.append(average if pooling == "average" else (average + cell.amax((2, 3))) / 2)
    return torch.stack(cells, dim=1)


def stage_two_of(loaded: LoadedModel, fusion: str, options: dict[str, Any], **recipe: Any) -> StageTwo:
    files = late_weights(loaded, 0)
    assert list(files) == ["rest.safetensors"]
    wanted = StageTwoRecipe(fusion=fusion, fusion_options=options, **{"late": 0, **recipe})
    producer = producer_of(loaded, 0)
    assert loaded.table.map_form is not None
    producer["model"]["maps"] = loaded.table.map_form.name
    return build_stage_two(producer, files.__getitem__, wanted, 0, dtype=loaded.dtype)


@every_type
@pytest.mark.parametrize("form", ["max+average", "average", "max+average:1", "average:1"])
@pytest.mark.parametrize("size", [(MAP_SIDE, MAP_SIDE), (48, 80)])
def test_taps_are_the_librarys_maps_pooled_window_by_window(model_type: str, form: str, size: tuple[int, int]) -> None:
    loaded = tiny_model(model_type).pooled(MapForm.parse(form))
    (stream,) = loaded.table.streams
    maps = maps_of(loaded.model, pictures(2, *size))
    grid = (1, 1) if form.endswith("1") else maps[-1].shape[-2:]
    assert stream.picture_rows(loaded.config, *size) == math.prod(grid)
    assert loaded.table.tap_widths(loaded.config, "encoder") == {n: each.shape[1] for n, each in enumerate(maps)}
    found = Front(loaded, {"encoder": tuple(range(5))})(TokenBatch(pixels=pictures(2, *size)))["encoder"]
    assert isinstance(found.taps, tuple)
    for tap, state in zip(found.taps, maps, strict=True):
        expected = pooled(state, grid, form.split(":")[0]).flatten(0, 1)
        torch.testing.assert_close(tap, expected, rtol=0, atol=1e-12)
    assert found.lengths.tolist() == [math.prod(grid)] * 2


@every_type
def test_the_mean_of_an_unpooled_last_map_is_the_models_own_pooler(model_type: str) -> None:
    loaded = tiny_model(model_type)
    own = loaded.model(pixel_values=pictures().double()).pooler_output.flatten(1)
    last = Front(loaded, {"encoder": (4,)})(TokenBatch(pixels=pictures()))["encoder"]
    torch.testing.assert_close(last.rows.view(3, 4, -1).mean(1), own, rtol=0, atol=1e-12)
    assert isinstance(last.taps, Tensor)


@every_type
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_tap_of_the_cut_model_is_proven_against_the_whole(model_type: str, dtype: torch.dtype) -> None:
    prove_split(tiny_model(model_type, dtype), TokenBatch(pixels=pictures()))


def test_a_model_whose_stages_know_how_many_there_are_cannot_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model("resnet")
    own = type(loaded.model.encoder).forward

    def forward(self: Any, state: Tensor, **options: Any) -> Any:
        return own(self, state * len(self.stages), **options)

    monkeypatch.setattr(type(loaded.model.encoder), "forward", forward)
    with pytest.raises(ModelError, match=r"cannot be split: its maps at h00"):
        prove_split(loaded, TokenBatch(pixels=pictures()))


@pytest.mark.parametrize(
    "config", [{"layer_type": "basic"}, {"downsample_in_first_stage": True}, {"depths": [1, 1, 1, 1]}]
)
def test_variants_of_a_config_are_cut_too(config: dict[str, Any]) -> None:
    loaded = tiny_model("resnet", **config)
    prove_split(loaded, TokenBatch(pixels=pictures(2, 70, 48)))
    rows = maps_of(loaded.model, pictures(2, 70, 48))[-1].shape[-2:]
    assert loaded.table.streams[0].picture_rows(loaded.config, 70, 48) == math.prod(rows)


@every_type
def test_stages_above_the_deepest_tap_do_not_run(model_type: str) -> None:
    loaded = tiny_model(model_type)
    ran: list[int] = []
    for index, stage in enumerate(loaded.model.encoder.stages):
        stage.register_forward_hook(lambda *_, index=index: ran.append(index))
    Front(loaded, {"encoder": (0, 2)})(TokenBatch(pixels=pictures()))
    assert ran == [0, 1]


@every_type
@pytest.mark.parametrize("name", ANY_WIDTHS)
def test_cached_logits_and_gradients_equal_live_ones(model_type: str, name: str) -> None:
    """In eval mode, since a batch norm in training sees who else is there; every trainable redrawn."""
    loaded = tiny_model(model_type)
    stage_two = stage_two_of(loaded, name.split(" ")[0], ANY_WIDTHS[name]).eval()
    redraw(stage_two, seed=3)
    for module in stage_two.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    pixels = pictures(4)
    front = Front(loaded, stage_two.reads)
    runs = [front(TokenBatch(pixels=part))["encoder"] for part in pixels.split([1, 3])]
    taps = [torch.cat(parts) for parts in zip(*(run.taps for run in runs), strict=True)]
    cached = Packed.of(taps, torch.cat([run.lengths for run in runs]), stage_two.reads["encoder"])
    found = stage_two({"encoder": cached})

    fusion, head, outputs = copy.deepcopy(stage_two.fusion), copy.deepcopy(stage_two.head), []
    for one in pixels:
        maps = maps_of(loaded.model, one[None])
        rows = [pooled(maps[tap], (2, 2), "max+average")[0] for tap in stage_two.reads["encoder"]]
        fused = fusion({"encoder": Packed.of(rows, torch.tensor([4]), stage_two.reads["encoder"])})["encoder"]
        outputs.append(head.linear(fused.rows.mean(0, keepdim=True)))
    expected = torch.cat(outputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    live = LiveModel(loaded, stage_two).logits(TokenBatch(pixels=pixels))
    torch.testing.assert_close(live, expected.detach(), rtol=0, atol=1e-10)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    own = {f"fusion.{key}": value.grad for key, value in fusion.named_parameters()}
    own |= {f"head.{key}": value.grad for key, value in head.named_parameters()}
    trained = stage_two.trained_parameters()
    assert trained.keys() == own.keys()
    moved = [key for key, parameter in trained.items() if parameter.grad is not None and parameter.grad.abs().max() > 0]
    assert len(moved) > 0.6 * len(trained), "a score below zero takes a tap out; most are in"
    for key, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, own[key], rtol=0, atol=1e-10)


def test_parameters_of_a_form_for_maps_are_counted_by_their_own_widths() -> None:
    """Of vse_image: a layer and a norm a tap, one score, one layer and norm back to the deepest width, a gate."""
    stage_two = stage_two_of(tiny_model("resnet"), "sherl", {"preset": "vse_image", "bottleneck": 6, "taps": "1,2,3,4"})
    entries = sum((width + 1) * 6 + 2 * 6 for width in (8, 8, 12, 20))
    count = entries + (6 + 1) + (6 + 1) * 20 + 2 * 20 + 1
    assert sum(p.numel() for p in stage_two.fusion.parameters()) == count


def test_every_fusion_that_says_it_takes_any_widths_is_driven_here() -> None:
    saying = {name for name in plugins.names("fusion") if plugins.find("fusion", name).any_widths}
    assert saying == {name.split(" ")[0] for name in ANY_WIDTHS}


@pytest.mark.parametrize("name", sorted(set(plugins.names("fusion")) - {name.split(" ")[0] for name in ANY_WIDTHS}))
def test_a_fusion_that_needs_one_width_says_so_and_names_those_that_do_not(name: str) -> None:
    told = f"fusion.name: {name} needs taps of one width, and it reads the encoder's h00 4, h01 8, h02 8, h03 12"
    able = "taps of any widths are read by head2toe, last, sherl, side, unipt"
    with pytest.raises(RecipeError, match=f"{re.escape(told)}.*; {able}$"):
        stage_two_of(tiny_model("resnet"), name, {})


def test_a_fusion_that_needs_one_width_reads_taps_that_have_it() -> None:
    loaded = tiny_model("resnet")
    stage_two = stage_two_of(loaded, "weighted_sum", {"taps": "1,2"})
    assert isinstance(Front(loaded, stage_two.reads)(TokenBatch(pixels=pictures()))["encoder"].taps, Tensor)


def test_late_blocks_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"late\.blocks 1: no layer of this resnet model can run late.*set late\.blocks: 0"
    ):
        stage_two_of(tiny_model("resnet"), "sherl", {}, late=1)


def test_a_grid_finer_than_the_deepest_map_is_refused() -> None:
    loaded = tiny_model("resnet").pooled(MapForm.parse("average:3"))
    with pytest.raises(ModelError, match=r"maps average:3: the deepest map .* has 2 x 2 places.*at most 2"):
        loaded.table.streams[0].picture_rows(loaded.config, 48, 48)


@pytest.mark.parametrize("text", ["mean", "average:0", "average:", "max+average:2x2", ""])
def test_what_is_no_form_of_maps_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"write max\+average or average"):
        MapForm.parse(text)
    assert MapForm.parse("average:7").name == "average:7"


def test_taps_that_are_equally_wide_are_one_tensor() -> None:
    rows, lengths = torch.zeros(3, 2), torch.tensor([3])
    assert isinstance(Packed.of([rows, rows], lengths, (0, 1)).taps, Tensor)
    assert isinstance(Packed.of([rows, torch.zeros(3, 4)], lengths, (0, 1)).taps, tuple)
    with pytest.raises(ValueError, match="equal widths are one tensor"):
        Packed((rows, rows), lengths, (0, 1))
    with pytest.raises(ValueError, match="2 taps of 3 depths"):
        Packed((rows, torch.zeros(3, 4)), lengths, (0, 1, 2))
