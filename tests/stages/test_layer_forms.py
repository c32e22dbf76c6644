"""Layers run by their parts against the library's own layers."""

import pytest
import safetensors.torch
import torch
from fusion_cases import exact_norms
from model_cases import loaded_model
from torch import Tensor

from sherl_cache.stages.front import first_tensor
from sherl_cache.stages.frozen_layers import weights_by_role
from sherl_cache.stages.late_weights import block_file, late_weights
from sherl_cache.stages.methods.contract import RelativeBias, frozen_layer

FAMILIES = ("bert", "roberta", "distilbert", "t5")
GATED = {"feed_forward_proj": "gated-gelu"}
CASES = [("encoder", family, {}) for family in FAMILIES]
CASES += [("decoder", "t5", {}), ("encoder", "t5", GATED), ("decoder", "t5", GATED)]


@pytest.fixture(autouse=True)
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_norms(monkeypatch)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("name", "family", "options"), CASES)
def test_a_layer_run_by_its_parts_equals_the_librarys_own(name: str, family: str, options: dict) -> None:
    """Every layer of the stack, one after another, on a padded batch; valid tokens only are compared."""
    loaded = loaded_model(family, "float64", **options)
    table, config = loaded.table, loaded.config
    stream = table.stream(name)
    depth = table.depth(config, name)
    files = late_weights(loaded, table.depth(config, table.late_streams[0].name))
    width = table.width(config)
    state, mask = draw(3, 5, width, seed=0), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    memory = (draw(3, 4, width, seed=1), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]))
    layers = loaded.model.get_submodule(stream.layers)
    seen: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for layer in layers] + [
        layers[-1].register_forward_hook(lambda module, args, output: seen.append(first_tensor(output)))
    ]
    arguments = dict(stream.arguments)
    if stream.memory_arguments is not None:
        arguments |= dict(zip(stream.memory_arguments, memory, strict=True))
    loaded.model.get_submodule(stream.stack)(inputs_embeds=state, attention_mask=mask, **arguments)
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


def test_the_relative_bias_equals_the_librarys_far_and_near() -> None:
    """Oracle: the library's own table of distances, beyond the farthest bucket."""
    model = loaded_model("t5").model
    for name in ("encoder", "decoder"):
        stream = loaded_model("t5").table.stream(name)
        form = stream.form(model.config)
        owner = model.get_submodule(stream.layers)[0].layer[0].SelfAttention
        ours = RelativeBias(form.relative, form.heads)
        ours.load_state_dict(owner.relative_attention_bias.state_dict())
        expected = owner.compute_bias(300, 300)[0]
        torch.testing.assert_close(ours(300), expected, rtol=0, atol=0)
