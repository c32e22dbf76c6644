"""Ladder Side-Tuning: gates, what its side blocks attend to, and starting values pruned from the pretrained model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from fusion_cases import BOTH_AT_HEAD, LENGTHS, PROBE, exact_norms, make_fusion, make_taps
from model_cases import folder_of, loaded_model, producer_of, ragged_batch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.methods.contract import Layer, Targets
from sherl_cache.stages.methods.fusion.ladder import Ladder, Rung
from sherl_cache.stages.methods.objective.classification import Classification
from sherl_cache.stages.methods.objective.token_cross_entropy import TokenCrossEntropy
from sherl_cache.stages.model import StageTwo
from sherl_cache.stages.pretrained import PretrainedModel
from sherl_cache.storage.errors import RecipeError

ANSWERS = [[5, 6, 1], [7, 1]]


def test_behaviour_20_gates_are_half_open_at_the_start() -> None:
    fusion = make_fusion("ladder", "probe")
    fresh = Ladder.from_options({"reduction": 2}, PROBE)
    for rung in fresh.sides["encoder"].rungs:
        assert torch.sigmoid(rung.gate / 0.1).item() == 0.5
    assert all(rung.gate.item() != 0 for rung in fusion.sides["encoder"].rungs)


def test_a_gate_that_is_wide_open_to_the_side_hides_the_backbone_behind_the_embeddings() -> None:
    fusion, taps = make_fusion("ladder", "probe"), make_taps("ladder", "probe")
    with torch.no_grad():
        for rung in fusion.sides["encoder"].rungs:
            rung.gate.fill_(10.0)
    before = fusion(taps)["encoder"].rows.clone()
    taps["encoder"].taps[1:] = 100 * torch.randn(taps["encoder"].taps[1:].shape)
    assert torch.equal(fusion(taps)["encoder"].rows, before)
    taps["encoder"].taps[0] += 1
    assert not torch.allclose(fusion(taps)["encoder"].rows, before)


def test_decoder_side_blocks_attend_to_the_encoders_side() -> None:
    """An answer's rows move with the trainables of the encoder's side, and with the taps of its own text alone."""
    fusion, taps = make_fusion("ladder", "encoder-decoder"), make_taps("ladder", "encoder-decoder")
    before = fusion(taps)["decoder"].rows.clone()
    taps["encoder"].taps[:, LENGTHS[0] :] += 1  # all texts but the first
    after = fusion(taps)["decoder"].rows
    assert torch.equal(after[: LENGTHS[0]], before[: LENGTHS[0]])
    assert not torch.allclose(after[LENGTHS[0] :], before[LENGTHS[0] :])
    with torch.no_grad():
        fusion.sides["encoder"].enter.weight.mul_(1.5)
    assert not torch.allclose(fusion(taps)["decoder"].rows[: LENGTHS[0]], before[: LENGTHS[0]])


def test_published_layers_are_dropped() -> None:
    streams = {name: replace(spec, depth=12) for name, spec in BOTH_AT_HEAD.items()}
    kept = (0, 2, 3, 4, 6, 7, 8, 10, 11, 12)
    assert Ladder.reads({}, streams) == {"encoder": kept, "decoder": kept}
    assert Ladder.reads({"taps": "0,4,8"}, streams)["decoder"] == (0, 4, 8)
    with pytest.raises(RecipeError, match=r"fusion\.taps \(encoder\): the side starts from h00"):
        Ladder.reads({"taps": "4,8"}, streams)
    with pytest.raises(RecipeError, match=r"fusion\.decoder\.reduction: give decoder and encoder the same"):
        Ladder.from_options({"reduction": 2, "decoder": {"reduction": 4}}, BOTH_AT_HEAD)


@dataclass
class Labelled:
    """The training split as PretrainedModel sees it: texts, gold answers and, of a decoder, candidate answers."""

    output: str
    gold: np.ndarray
    texts: list[list[int]]
    types: list[list[int]] | None

    def candidates(self, example: int) -> list[np.ndarray]:
        return [np.asarray(answer) for answer in ANSWERS]

    def of(self, examples: np.ndarray, segments: str, device: torch.device) -> Targets:
        gold = self.gold[examples]
        if self.output == "tokens":
            return Targets(tokens=torch.tensor([token for label in gold for token in ANSWERS[label]]))
        return Targets(gold=torch.from_numpy(gold))

    @property
    def targets(self) -> "Labelled":
        return self

    def column(self, name: str) -> list[Any]:
        values = {"input_ids": self.texts, "token_type_ids": self.types or [None] * len(self.texts)}[name]
        return [Scalar(value) for value in values]


@dataclass
class Scalar:
    value: Any

    def as_py(self) -> Any:
        return self.value


def prepared(family: str, reduction: int, examples: int = 1024) -> tuple[StageTwo, PretrainedModel, Labelled]:
    """A ladder whose starting values were pruned, in float64; the second of five examples has no label."""
    loaded = loaded_model(family, "float64")
    options = {"reduction": reduction, "init": "fisher", "fisher_examples": examples}
    recipe = StageTwoRecipe(fusion="ladder", fusion_options=options, late=0)
    model = build_stage_two(producer_of(loaded), late_weights(loaded, 2).__getitem__, recipe, 0, dtype=torch.float64)
    batch = ragged_batch(family)
    output = "tokens" if family == "t5" else "classes"
    rows = Labelled(output, np.asarray([1, -1, 0, 1, 0]), batch.input_ids, batch.token_type_ids)
    objective = TokenCrossEntropy.from_options({}) if family == "t5" else Classification.from_options({})
    pretrained = PretrainedModel(loaded, model, objective, rows, rows)
    assert Ladder.prepares(options, model.specs)

    class Preparation:
        def pretrained(self) -> PretrainedModel:
            return pretrained

    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    model.fusion.prepare(Preparation())
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad or p.grad is not None for p in loaded.model.parameters())
    return model, pretrained, rows


def rungs(model: StageTwo) -> Iterator[tuple[str, int, Layer]]:
    for name, side in model.fusion.sides.items():
        for tap, rung in zip(model.reads[name][1:], side.rungs, strict=True):
            assert isinstance(rung, Rung)
            yield name, tap - 1, rung.block


@pytest.mark.parametrize("family", ["bert", "distilbert", "t5"])
def test_pruning_to_the_full_width_copies_the_pretrained_blocks(family: str) -> None:
    """Oracle: the blocks themselves; the relative bias, where there is one, and every norm too."""
    model, pretrained, _ = prepared(family, reduction=1, examples=1)
    for name, index, block in rungs(model):
        source = pretrained.modules_of(name, index)
        for key, parameter in block.named_parameters():
            role, _, which = key.rpartition(".")
            assert torch.equal(parameter, source[role].get_parameter(which)), key
    if family == "t5":
        bias = loaded_model("t5", "float64").model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        assert torch.equal(model.fusion.sides["encoder"].bias.weight, bias.weight)


def squares_of(rows: Labelled) -> dict[str, Tensor]:
    """Summed squared gradients of the library's own losses, of labelled examples."""
    library = T5ForConditionalGeneration.from_pretrained(folder_of("t5"), dtype=torch.float64).eval()
    total = {name: torch.zeros_like(p) for name, p in library.named_parameters()}
    for number in np.flatnonzero(rows.gold >= 0):
        library.zero_grad()
        labels = torch.tensor([ANSWERS[rows.gold[number]]])
        library(input_ids=torch.tensor([rows.texts[number]]), labels=labels).loss.backward()
        for name, parameter in library.named_parameters():
            total[name] += parameter.grad.square()
    return total


def test_pruning_keeps_the_units_whose_weights_have_the_largest_squared_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: gradients of the library's loss of each labelled example, units chosen by sorting."""
    exact_norms(monkeypatch)
    model, _, rows = prepared("t5", reduction=2)
    squares, library = squares_of(rows), loaded_model("t5", "float64").model

    def best(importance: Tensor, keep: int) -> list[int]:
        return sorted(sorted(range(len(importance)), key=lambda unit: -importance[unit])[:keep])

    state = torch.zeros(16, dtype=torch.float64)
    for name, square in squares.items():
        if name.endswith((".q.weight", ".k.weight", ".v.weight", ".wi.weight")):
            state += square.sum(0)
        elif name.endswith((".o.weight", ".wo.weight")):
            state += square.sum(1)
    units = best(state, 8)
    for name, index, block in rungs(model):
        path = f"{name}.block.{index}.layer"
        ffn = f"{path}.{2 if name == 'decoder' else 1}.DenseReluDense"
        hidden = best(squares[f"{ffn}.wi.weight"].sum(1) + squares[f"{ffn}.wo.weight"].sum(0), 16)
        weight = library.get_parameter(f"{ffn}.wi.weight")
        assert torch.equal(block.ffn_in.weight, weight[hidden][:, units])
        assert torch.equal(block.ffn_out.weight, library.get_parameter(f"{ffn}.wo.weight")[units][:, hidden])
        for prefix, place, attention in (("", 0, "SelfAttention"), ("cross_", 1, "EncDecAttention")):
            if prefix and name == "encoder":
                continue
            own = f"{path}.{place}.{attention}"
            shared = (squares[f"{own}.q.weight"].sum(1) + squares[f"{own}.k.weight"].sum(1)).view(2, 8)
            chosen = [8 * head + unit for head in range(2) for unit in best(shared[head], 4)]
            for role, letter in (("query", "q"), ("key", "k")):
                expected = library.get_parameter(f"{own}.{letter}.weight")[chosen][:, units]
                assert torch.equal(block.get_parameter(f"{prefix}{role}.weight"), expected)
            shared = (squares[f"{own}.v.weight"].sum(1) + squares[f"{own}.o.weight"].sum(0)).view(2, 8)
            chosen = [8 * head + unit for head in range(2) for unit in best(shared[head], 4)]
            assert torch.equal(
                block.get_parameter(f"{prefix}out.weight"), library.get_parameter(f"{own}.o.weight")[units][:, chosen]
            )
        assert torch.equal(
            block.ffn_norm.weight, library.get_submodule(ffn.rpartition(".")[0]).layer_norm.weight[units]
        )


def test_only_so_many_examples_are_looked_at() -> None:
    _, pretrained, _ = prepared("bert", reduction=2, examples=1)
    assert [len(list(pretrained.losses(count))) for count in (1, 3, 100)] == [1, 3, 4]
    assert all(isinstance(loss, Tensor) and loss.shape == () for loss in pretrained.losses(2))


def test_fisher_needs_a_table_that_says_how_layers_are_put_together() -> None:
    streams = {"encoder": replace(PROBE["encoder"], form=None)}
    with pytest.raises(RecipeError, match=r"fusion\.init: fisher needs to know .* encoder layers .* use random"):
        Ladder.prepares({"init": "fisher"}, streams)
    plain = Ladder.from_options({"reduction": 2}, streams)
    assert isinstance(plain.sides["encoder"].norm, nn.LayerNorm)
