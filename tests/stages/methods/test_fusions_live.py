"""Cached equals live for every fusion that ends at the head, where rows may meet: the transformers model's own forward with
hooks, and a copy of the fusion on each example alone, with no padding anywhere."""

import copy
from typing import Any

import pytest
import torch
from fusion_cases import OPTIONS, exact_norms
from live_oracle import padded, redraw, watch
from model_cases import cached, folder_of, loaded_model, part, producer_of, ragged_batch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSeq2SeqLM

from sherl_cache.stages import plugins
from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.front import TokenBatch
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.methods.contract import Packed
from sherl_cache.stages.methods.fusion._sherl_parts import PRESETS
from sherl_cache.stages.model import StageTwo
from sherl_cache.storage.errors import RecipeError, StoreStale

FUSIONS = tuple(name for name in plugins.names("fusion"))
ORDER = [3, 0, 4, 2, 1]


@pytest.fixture(autouse=True)
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_norms(monkeypatch)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def stage_two_at_head(family: str, name: str, options: dict[str, Any] | None = None) -> StageTwo:
    """Over a store that holds the weights of every block."""
    loaded = loaded_model(family, "float64")
    depth = loaded.table.depth(loaded.config, loaded.table.late_streams[0].name)
    recipe = StageTwoRecipe(fusion=name, fusion_options=OPTIONS.get(name, {}) | (options or {}), late=0)
    files = late_weights(loaded, depth)
    model = build_stage_two(producer_of(loaded, depth), files.__getitem__, recipe, 0, dtype=torch.float64)
    redraw(model, seed=3)
    return model


def live_side(family: str, stage_two: StageTwo, batch: TokenBatch) -> tuple[Tensor, dict[str, nn.Module]]:
    """The head's output, and the modules whose gradients stand against stage two's."""
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModel
    model = auto.from_pretrained(folder_of(family), dtype=torch.float64).eval().requires_grad_(False)
    stacks = {"encoder": model.encoder.block, "decoder": model.decoder.block} if family == "t5" else {}
    if not stacks:
        stacks = {"encoder": next(item for item in model.modules() if isinstance(item, nn.ModuleList))}
    fusion, head, norms = (copy.deepcopy(part) for part in (stage_two.fusion, stage_two.head, stage_two.norm))
    states = {name: watch(layers) for name, layers in stacks.items()}
    outputs, asks_decoder = [], "decoder" in stage_two.specs
    for number in range(len(batch.input_ids)):
        one = part(batch, [number])
        for answer in one.targets[0] if asks_decoder else [None]:
            ids, mask = padded(one.input_ids, 0, extra=2)
            arguments = {"input_ids": ids, "attention_mask": mask}
            if one.token_type_ids is not None:
                arguments["token_type_ids"] = padded(one.token_type_ids, 0, extra=2)[0]
            if family == "t5":
                arguments["labels"] = torch.tensor([answer or [1]])
            model(**arguments)
            lengths = {"encoder": len(one.input_ids[0]), "decoder": len(answer or [1])}
            packed = {
                name: Packed(
                    torch.stack([states[name][tap][0, : lengths[name]] for tap in taps]),
                    torch.tensor([lengths[name]]),
                    taps,
                )
                for name, taps in stage_two.reads.items()
            }
            fused = fusion(packed)[stage_two.exit_stream]
            rows = fused.rows
            if stage_two.exit_stream in norms:
                rows = norms[stage_two.exit_stream](rows)
            if asks_decoder:
                outputs.append(model.lm_head(rows * model.config.d_model**-0.5))
            else:
                outputs.append(head.linear(rows.mean(0, keepdim=True)))
    return torch.cat(outputs), {"fusion": fusion, "head": head, "norm": norms}


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize(
    "family", ["bert", "t5", *(pytest.param(f, marks=pytest.mark.slow) for f in ("roberta", "distilbert"))]
)
def test_cached_logits_and_gradients_equal_live_ones(family: str, name: str) -> None:
    check_parity(family, stage_two_at_head(family, name))


def check_parity(family: str, stage_two: StageTwo) -> None:
    loaded = loaded_model(family, "float64")
    batch = part(ragged_batch(family), ORDER)
    found = stage_two(cached(loaded, stage_two, [part(batch, [0]), part(batch, [1, 2]), part(batch, [3, 4])]))
    expected, modules = live_side(family, stage_two, batch)
    close(found, expected)
    close(LiveModel(loaded, stage_two).logits(batch), expected.detach())
    random = torch.Generator().manual_seed(9)
    weights = torch.randn(found.shape, generator=random, dtype=torch.float64)
    trained = stage_two.trained_parameters()
    if not trained:  # `last` with a language model's head
        return
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {
        f"{prefix}.{key}": parameter.grad
        for prefix, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    assert gradients.keys() == trained.keys()
    for key, parameter in trained.items():
        close(parameter.grad, gradients[key])


@pytest.mark.parametrize("family", ["bert", pytest.param("t5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("preset", PRESETS)
def test_cached_logits_and_gradients_of_every_published_form_equal_live_ones(family: str, preset: str) -> None:
    """In eval mode: in training a batch norm sees who else is there, and dropout draws."""
    check_parity(family, stage_two_at_head(family, "sherl", {"preset": preset, "reduction": 2}).eval())


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_of_a_fusion_that_mixes_rows_equals_full_reruns(num_beams: int) -> None:
    """Oracle: greedy search by full re-runs of each example alone; and beams, in company as alone."""
    loaded, stage_two = loaded_model("t5", "float64"), stage_two_at_head("t5", "ladder")
    live, batch = LiveModel(loaded, stage_two), ragged_batch("t5")
    together = live.generate(batch, max_new_tokens=5, num_beams=num_beams)
    if num_beams > 1:
        alone = [live.generate(part(batch, [n]), max_new_tokens=5, num_beams=num_beams)[0] for n in range(5)]
        assert together == alone
        return
    answers = []
    for text in batch.input_ids:
        answer: list[int] = []
        while len(answer) < 5 and (not answer or answer[-1] != loaded.config.eos_token_id):
            logits = live.logits(TokenBatch([text], None, [[[*answer, 0]]]))
            answer.append(int(logits[-1].argmax()))
        answers.append(answer)
    expected = loaded.tokenizer.batch_decode(answers, skip_special_tokens=True)
    assert len(set(expected)) > 1, "answers that are all the same would show little"
    assert together == expected


def test_a_head_that_predicts_tokens_refuses_a_fusion_that_sees_later_ones() -> None:
    loaded = loaded_model("t5")
    recipe = StageTwoRecipe(fusion="unipt", late=0, head="language_model")
    with pytest.raises(RecipeError, match=r"fusion\.name: unipt lets a token see later ones.*classifier"):
        build_stage_two(producer_of(loaded), late_weights(loaded, 2).__getitem__, recipe, 0)


@pytest.mark.parametrize(("family", "needed"), [("bert", 4), ("t5", 3)])
def test_layers_that_the_store_lacks_are_refused_with_what_to_extract(family: str, needed: int) -> None:
    loaded = loaded_model(family)
    with pytest.raises(StoreStale, match=rf"vqt calls encoder layer 0.*--late {needed}"):
        build_stage_two(
            producer_of(loaded), late_weights(loaded, 2).__getitem__, StageTwoRecipe(fusion="vqt", late=0), 0
        )


def test_layers_within_reach_of_the_store_are_enough() -> None:
    loaded = loaded_model("bert")
    recipe = StageTwoRecipe(fusion="vqt", fusion_options={"taps": "late:3"}, late=0)
    with pytest.raises(RecipeError, match=r"fusion\.taps \(encoder\): h04 enters no layer; the last that does is h03"):
        build_stage_two(producer_of(loaded), late_weights(loaded, 2).__getitem__, recipe, 0)
    recipe = StageTwoRecipe(fusion="vqt", fusion_options={"taps": "2,3"}, late=0)
    model = build_stage_two(producer_of(loaded), late_weights(loaded, 2).__getitem__, recipe, 0)
    assert model.reads == {"encoder": (2, 3, 4)}


@pytest.mark.parametrize("name", FUSIONS)
def test_trained_state_and_buffers_make_the_same_model_again(name: str) -> None:
    """Oracle: the outputs of the model that was saved; the other one starts elsewhere, buffers too."""
    loaded, stage_two = loaded_model("bert", "float64"), stage_two_at_head("bert", name)
    other = stage_two_at_head("bert", name)
    redraw(other, seed=8)
    for key, buffer in other.fusion.named_buffers():
        assert key.endswith("kept")
        buffer.copy_(buffer.flip(0))
    other.load_trainable_state_dict(stage_two.trainable_state_dict())
    taps = cached(loaded, stage_two, [ragged_batch("bert")])
    assert torch.equal(other(taps), stage_two(taps))
