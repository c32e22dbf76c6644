"""Query tuning: the cached path against the library's own layer with the queries beside its tokens, and its parts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from fusion_cases import LENGTHS, PRE_NORM, PROBE, WIDTH, exact_norms, make_fusion, make_taps, random_layer
from model_cases import loaded_model
from torch import Tensor

from sherl_cache.stages.frozen_layers import weights_by_role
from sherl_cache.stages.methods.contract import Packed, StreamSpec, frozen_layer, padding_of
from sherl_cache.stages.methods.fusion.vqt import VQT, VQTBlock, VQTConfig


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block_of(form: Any, layers: dict[int, Any], **options: object) -> VQTBlock:
    depth = len(layers)
    spec = StreamSpec(
        name="encoder",
        width=layers[0].width,
        depth=depth,
        late=0,
        exit="head",
        encoder_decoder=False,
        form=form,
        layers=layers,
    )
    torch.manual_seed(0)
    return VQTBlock(VQTConfig(**options), spec, tuple(range(depth + 1))).double()


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("family", ["bert", "distilbert", "t5"])
def test_check_1_queries_read_a_layer_as_if_they_stood_beside_its_tokens(
    family: str, fold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the library's own layer on [queries; tokens] with queries hidden from every one, its first rows; values and
    gradients of the queries."""
    exact_norms(monkeypatch)
    loaded = loaded_model(family, "float64")
    stream = loaded.table.stream("encoder")
    library = loaded.model.get_submodule(stream.layers)[1]
    width, form = loaded.table.width(loaded.config), stream.form(loaded.config)
    state = {f"{stream.layers}.1.{name}": value for name, value in library.state_dict().items()}
    layer = frozen_layer(form, width, weights_by_role(stream, 1, state))
    block = block_of(form, {0: layer}, fold=fold)
    rows, count = draw(int(LENGTHS.sum()), width, seed=1), 2
    queries = draw(count, width, seed=2).requires_grad_()
    found = block.ask(layer, queries, rows, padding_of(LENGTHS))
    expected = []
    for tokens in rows.split(LENGTHS.tolist()):
        together = torch.cat([queries, tokens]).unsqueeze(0)
        mask = torch.zeros(1, 1, len(together[0]), len(together[0]), dtype=torch.float64)
        mask[..., :count] = torch.finfo(torch.float64).min
        heads = form.heads
        extra = {"position_bias": mask.expand(1, heads, -1, -1)} if family == "t5" else {}
        output = library(together, attention_mask=mask, **extra)
        output = output[0] if isinstance(output, tuple) else output
        expected.append(output[0, :count])
    direction = draw(*found.shape, seed=3)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-10)
    (ours,) = torch.autograd.grad((found * direction).sum(), queries)
    (theirs,) = torch.autograd.grad((torch.stack(expected) * direction).sum(), queries)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_check_2_queries_of_one_layer_move_the_features_of_that_layer_alone() -> None:
    fusion, taps = make_fusion("vqt", "probe", {"queries": 2}), make_taps("vqt", "probe", {"queries": 2})
    before = fusion(taps)["encoder"].rows.clone()
    with torch.no_grad():
        fusion.blocks["encoder"].queries[1].add_(1)
    after = fusion(taps)["encoder"].rows
    own = slice(WIDTH * (1 + 2), WIDTH * (1 + 4))
    assert not torch.allclose(after[:, own], before[:, own])
    after[:, own] = before[:, own]
    assert torch.equal(after, before)
    assert not any(parameter.requires_grad for parameter in fusion.blocks["encoder"].layers.parameters())


@pytest.mark.parametrize("form", [PRE_NORM, PROBE["encoder"].form], ids=["pre-norm", "post-norm"])
def test_check_3_folded_keys_and_values_equal_those_that_are_made(form: Any) -> None:
    layers = {index: random_layer(form, seed=index).double() for index in range(3)}
    taps = draw(4, int(LENGTHS.sum()), WIDTH, seed=1)
    folded, explicit = (block_of(form, layers, queries=2, fold=fold) for fold in (True, False))
    explicit.load_state_dict(folded.state_dict())
    torch.testing.assert_close(folded(taps, LENGTHS)[0], explicit(taps, LENGTHS)[0], rtol=0, atol=1e-12)


def test_check_3_queries_do_not_see_one_another() -> None:
    """Two queries of a layer are two runs with one each, but for the length that they share."""
    layer = random_layer(PRE_NORM).double()
    rows, padding = draw(int(LENGTHS.sum()), WIDTH, seed=1), padding_of(LENGTHS)
    queries = draw(2, WIDTH, seed=2)
    block = block_of(PRE_NORM, {0: layer})
    together = block.ask(layer, queries, rows, padding)
    alone = [block.ask(layer, queries[number : number + 1], rows, padding) for number in range(2)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=0, atol=1e-13)


def test_features_are_the_pooled_state_and_the_queries_of_each_layer_each_of_length_one() -> None:
    fusion, taps = make_fusion("vqt", "probe", {"queries": 3}), make_taps("vqt", "probe", {"queries": 3})
    fused = fusion(taps)["encoder"]
    assert fused.lengths.tolist() == [1, 1, 1]
    pooled, *read = fused.rows.split([WIDTH, *[3 * WIDTH] * 4], dim=1)
    last = torch.stack([rows.mean(0) for rows in taps["encoder"].taps[-1].split(LENGTHS.tolist())])
    torch.testing.assert_close(pooled, last / last.norm(dim=1, keepdim=True))
    for chunk in read:
        torch.testing.assert_close(chunk.norm(dim=1), torch.ones(3))
    mean = make_fusion("vqt", "probe", {"queries": 3, "combine": "mean"})
    assert mean.widths == {"encoder": WIDTH * 5}
    assert mean(taps)["encoder"].rows.shape == (3, WIDTH * 5)


def test_the_pooled_state_is_taken_after_the_final_norm_as_the_backbone_pools() -> None:
    norm = torch.nn.LayerNorm(WIDTH).requires_grad_(False)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    layers = {index: random_layer(PRE_NORM, seed=index) for index in range(4)}
    spec = replace(PROBE["encoder"], form=PRE_NORM, layers=layers, final_norm=norm, pooling="cls")
    fusion = VQT.from_options({}, {"encoder": spec})
    taps = make_taps("vqt", "probe")
    firsts = norm(taps["encoder"].taps[-1, LENGTHS.cumsum(0) - LENGTHS])
    expected = firsts / firsts.norm(dim=1, keepdim=True)
    torch.testing.assert_close(fusion(taps)["encoder"].rows[:, :WIDTH], expected)


def test_a_choice_of_layers_asks_for_their_weights_and_no_others() -> None:
    options = {"taps": "1,3"}
    assert VQT.frozen_layers(options, PROBE) == {"encoder": (1, 3)}
    assert VQT.reads(options, PROBE) == {"encoder": (1, 3, 4)}
    fusion = make_fusion("vqt", "probe", options)
    taps = torch.randn(3, int(LENGTHS.sum()), WIDTH, generator=torch.Generator().manual_seed(1))
    rows = fusion({"encoder": Packed(taps, LENGTHS, (1, 3, 4))})["encoder"].rows
    assert rows.shape == (3, WIDTH * 3)
