"""The last late layer for the rows that are read, against the layer for every row."""

import pytest
import torch
from live_oracle import redraw
from model_cases import ENCODERS, cached, loaded_model, ragged_batch, stage_two_of
from torch import Tensor, nn

from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.model import StageTwo

CLS = {"pooling": "cls"}
every_encoder = pytest.mark.parametrize("family", ENCODERS)


def models(family: str, **recipe: object) -> tuple[StageTwo, StageTwo]:
    """The same model twice, every trainable redrawn; the second computes every row of its last layer."""
    loaded = loaded_model(family, "float64")
    pair = []
    for _ in range(2):
        model = stage_two_of(loaded, StageTwoRecipe(**{"head_options": CLS, **recipe}), torch.float64)
        redraw(model, 3)
        pair.append(model.eval())
    pair[1].late.stream("encoder").selected = None
    return pair[0], pair[1]


def output_and_gradients(family: str, model: StageTwo) -> tuple[Tensor, dict[str, Tensor]]:
    loaded = loaded_model(family, "float64")
    output = model(cached(loaded, model, [ragged_batch(family)]))
    output.square().sum().backward()
    return output.detach(), {name: value.grad for name, value in model.trained_parameters().items()}


@every_encoder
@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("tuner", [None, "lora"])
def test_logits_and_gradients_equal_those_of_the_layer_for_every_row(family: str, late: int, tuner: str | None) -> None:
    ours, plain = models(family, late=late, tuner=tuner)
    assert ours.late.stream("encoder").selected is not None
    found, gradients = output_and_gradients(family, ours)
    expected, others = output_and_gradients(family, plain)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-9, atol=1e-9, msg=name)


@every_encoder
def test_the_feed_forward_of_the_last_layer_sees_one_row_a_segment(family: str) -> None:
    model, _ = models(family, late=2)
    loaded = loaded_model(family, "float64")
    batch = ragged_batch(family)
    seen: dict[int, int] = {}
    layers = model.late.stream("encoder").layers
    for index, layer in layers.items():
        wide = max(
            (module for module in layer.modules() if isinstance(module, nn.Linear)), key=lambda item: item.out_features
        )
        wide.register_forward_hook(
            lambda module, args, output, index=index: seen.__setitem__(
                index, seen.get(index, 0) + output.shape[:-1].numel()
            )
        )
    model(cached(loaded, model, [batch]))
    first, last = sorted(layers)
    segments = len(batch)
    assert seen[last] == segments
    assert seen[first] > segments


@every_encoder
def test_mean_pooling_reads_every_row(family: str) -> None:
    model, _ = models(family, head_options={"pooling": "mean"})
    assert model.head.reads(torch.tensor([3, 1])) is None


def test_outside_a_selection_the_hooks_do_nothing() -> None:
    ours, plain = models("bert", head_options={"pooling": "mean"})
    found, _ = output_and_gradients("bert", ours)
    expected, _ = output_and_gradients("bert", plain)
    assert torch.equal(found, expected)


def test_an_error_inside_leaves_the_layer_whole() -> None:
    model, plain = models("bert")
    loaded = loaded_model("bert", "float64")
    selected = model.late.stream("encoder").selected
    assert selected is not None
    with pytest.raises(RuntimeError, match="within"), selected.only(torch.tensor([0])):
        raise RuntimeError("within")
    inputs = cached(loaded, model, [ragged_batch("bert")])
    torch.testing.assert_close(model(inputs), plain(inputs), rtol=0, atol=1e-10)
