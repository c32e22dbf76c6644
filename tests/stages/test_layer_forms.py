"""Layers run by their parts against the library's own layers, for every table that says how."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from stage_two_oracle import double_precision
from text_models import tiny_model
from tiny_configs import TEXT_CONFIGS
from tiny_pictures import tiny_deit, tiny_vit
from torch import Tensor
from transformers import AutoConfig

from sherl_cache.stages.backbones.contract import table_for
from sherl_cache.stages.front import first_tensor
from sherl_cache.stages.frozen_layers import weights_by_role
from sherl_cache.stages.late_weights import block_file, late_weights
from sherl_cache.stages.load import load_pretrained
from sherl_cache.stages.methods.contract import RelativeBias, frozen_layer

CONFIGS = {name: AutoConfig.for_model(name, **keys) for name, keys in TEXT_CONFIGS.items()}
PUT_TOGETHER = [
    (model_type, stream.name)
    for model_type, config in CONFIGS.items()
    for stream in table_for(config).streams
    if stream.form(config) is not None
]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("model_type", "name"), PUT_TOGETHER)
def test_a_layer_run_by_its_parts_equals_the_librarys_own(model_type: str, name: str) -> None:
    """Every layer of the stack, one after another, on a padded batch; valid tokens only are compared."""
    loaded = tiny_model(model_type, "float64")
    table, config = loaded.table, loaded.config
    stream = table.stream(name)
    depth = table.depth(config, name)
    files = late_weights(loaded, table.depth(config, table.late_streams[0].name))
    width = table.width(config)
    ids = torch.arange(5, 20).view(3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    memory = (draw(3, 4, width, seed=1), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]))
    layers = loaded.model.get_submodule(stream.layers)
    seen: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for layer in layers] + [
        layers[-1].register_forward_hook(lambda module, args, output: seen.append(first_tensor(output)))
    ]
    arguments = dict(stream.arguments)
    if stream.memory_arguments is not None:
        arguments |= dict(zip(stream.memory_arguments, memory, strict=True))
    with double_precision(loaded.model):
        loaded.model.get_submodule(stream.stack)(input_ids=ids, attention_mask=mask, **arguments)
    for handle in handles:
        handle.remove()

    form = stream.form(config)
    bias = None
    if form.relative is not None:
        shared = RelativeBias(form.relative, form.heads).double()
        owner = layers[0].get_submodule(stream.relative_bias)
        shared.load_state_dict(owner.state_dict())
        bias = shared(5)
    for index in range(depth):
        weights = weights_by_role(stream, index, safetensors.torch.load(files[block_file(name, index)]))
        layer = frozen_layer(form, width, weights)
        found = layer(seen[index], mask, bias, memory if form.memory else None)
        valid = mask.bool()
        torch.testing.assert_close(found[valid], seen[index + 1][valid], rtol=0, atol=1e-10)


@pytest.mark.parametrize("maker", [tiny_vit, tiny_deit])
def test_a_layer_of_a_vision_transformer_run_by_its_parts_equals_the_librarys_own(
    maker: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load_pretrained(str(maker(tmp_path / "model")), dtype="float64")
    stream, config = loaded.table.stream("encoder"), loaded.config
    form, width = stream.form(config), loaded.table.width(config)
    files = late_weights(loaded, loaded.table.depth(config, "encoder"))
    layers = loaded.model.get_submodule(stream.layers)
    rows, mask = draw(2, 6, width, seed=0), torch.ones(2, 6)
    for index, library in enumerate(layers):
        weights = weights_by_role(stream, index, safetensors.torch.load(files[block_file("encoder", index)]))
        expected = first_tensor(library(rows))
        torch.testing.assert_close(frozen_layer(form, width, weights)(rows, mask), expected, rtol=0, atol=1e-10)


def test_the_relative_bias_equals_the_librarys_far_and_near() -> None:
    """Oracle: the library's own table of distances, beyond the farthest bucket."""
    model, table = tiny_model("t5").model, tiny_model("t5").table
    for name in ("encoder", "decoder"):
        stream = table.stream(name)
        form = stream.form(model.config)
        owner = model.get_submodule(stream.layers)[0].layer[0].SelfAttention
        ours = RelativeBias(form.relative, form.heads)
        ours.load_state_dict(owner.relative_attention_bias.state_dict())
        expected = owner.compute_bias(300, 300)[0]
        torch.testing.assert_close(ours(300), expected, rtol=0, atol=0)


def test_layers_that_cannot_be_put_together_say_so() -> None:
    """Rotary positions, a position bias of every block's own, fused projections, an activation that nobody knows."""
    assert {model_type for model_type, _ in PUT_TOGETHER} == {
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "electra",
        "distilbert",
        "t5",
        "mt5",
        "bart",
        "opt",
    }
    config = AutoConfig.for_model("bert", hidden_act="relu2")
    assert table_for(config).streams[0].form(config) is None
