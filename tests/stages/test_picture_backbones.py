"""Tables of models that read pictures: each drives a tiny model of its type, cut anywhere."""

import pytest
import safetensors.torch
import torch
import transformers
from tiny_pictures import MAP_CONFIGS, PICTURE_CONFIGS
from transformers import AutoConfig

from sherl_cache.stages.backbones.contract import all_tables, table_for
from sherl_cache.stages.front import Front, TokenBatch, prove_split
from sherl_cache.stages.late import build_late
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.load import LoadedModel, weights_digest
from sherl_cache.storage.errors import ModelError

TEXTS = [[3, 4, 59], [7, 59], [9, 8, 7, 6, 59]]

every_type = pytest.mark.parametrize("model_type", PICTURE_CONFIGS)


def tiny_model(model_type: str, dtype: torch.dtype) -> LoadedModel:
    """Every parameter redrawn, so that a forgotten or a swapped one shows."""
    config = AutoConfig.for_model(model_type, **PICTURE_CONFIGS[model_type])
    table = table_for(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto = getattr(transformers, table.auto_class)
        model = auto.from_config(config, attn_implementation="sdpa", dtype=dtype, **table.options).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                norm = "norm" in name or name.endswith("lambda1")
                parameter.copy_(0.5 + torch.rand(parameter.shape) if norm else 0.3 * torch.randn(parameter.shape))
    return LoadedModel(model_type, model.requires_grad_(False), None, table, None, weights_digest(model))


def test_every_table_that_reads_pictures_has_a_tiny_config() -> None:
    reading = {name: table for name, table in all_tables().items() if table.reads_pictures}
    assert set(PICTURE_CONFIGS) == {name for name, table in reading.items() if table.map_form is None}
    assert set(MAP_CONFIGS) == {name for name, table in reading.items() if table.map_form is not None}


@every_type
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_late_of_front_equals_the_models_own_forward(model_type: str, dtype: torch.dtype) -> None:
    loaded = tiny_model(model_type, dtype)
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=dtype)
    for late in (1, 2, 3):
        prove_split(loaded, TokenBatch(TEXTS, pixels=pixels), late)


@pytest.mark.parametrize("model_type", ["dinov2", "dinov2_with_registers"])
def test_positions_are_interpolated_to_another_size(model_type: str) -> None:
    loaded = tiny_model(model_type, torch.float64)
    pixels = torch.randn(2, 3, 12, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    prove_split(loaded, TokenBatch(pixels=pixels))
    (stream,) = loaded.table.streams
    rows = loaded.model(pixel_values=pixels).last_hidden_state.shape[1]
    assert stream.picture_rows(loaded.config, 12, 9) == rows


@every_type
def test_rows_of_a_picture_are_those_that_the_model_makes(model_type: str) -> None:
    loaded = tiny_model(model_type, torch.float32)
    stream = loaded.table.streams[0]
    stack = loaded.model.get_submodule(stream.stack)
    rows = stack(pixel_values=torch.zeros(1, 3, 8, 8)).last_hidden_state.shape[1]
    assert stream.picture_rows(loaded.config, 8, 8) == rows
    if not stream.any_size:
        with pytest.raises(ModelError, match=r"12 x 8 pixels and this .* model takes 8 x 8"):
            stream.picture_rows(loaded.config, 12, 8)
    with pytest.raises(ModelError):
        stream.picture_rows(loaded.config, 3, 3)


@every_type
@pytest.mark.parametrize("late", [1, 3])
def test_late_part_is_bit_equal_to_the_stacks_own_forward(model_type: str, late: int) -> None:
    """Its embedding does not run: the stack is built without any early tensor."""
    loaded = tiny_model(model_type, torch.float32)
    stream = loaded.table.streams[0]
    loaded = loaded.only([stream.name])
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    (cut,) = Front(loaded, {stream.name: (4 - late,)})(TokenBatch(pixels=pixels)).values()
    files = late_weights(loaded, late)
    parts = build_late(loaded.table, loaded.config, files.__getitem__, late)
    states = parts.late({stream.name: cut.rows}, {stream.name: cut.lengths}, {})[stream.name]
    own = loaded.model.get_submodule(stream.stack)(pixel_values=pixels)
    rows = states.view(3, -1, 16)
    if stream.norms_rows:
        assert torch.equal(parts.norms[stream.name](rows), own.last_hidden_state)
    else:
        assert torch.equal(rows, own.last_hidden_state)
        assert torch.equal(parts.norms[stream.name](rows[:, 0]), own.pooler_output)
    tensors = [name for data in files.values() for name in safetensors.torch.load(data)]
    assert not [name for name in tensors if "embeddings" in name]
