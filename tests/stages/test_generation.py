"""Encoder-decoders: what trains, which memory each layer sees, and generation."""

import itertools

import pytest
import torch
from live_oracle import redraw
from model_cases import cached, loaded_model, part, ragged_batch, stage_two_of

from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.front import Front, TokenBatch
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.model import StageTwo
from sherl_cache.storage.errors import DataError, RecipeError


@pytest.fixture
def stage_two() -> StageTwo:
    """SHERL as published, every trainable redrawn."""
    model = stage_two_of(loaded_model("t5"), StageTwoRecipe(mode="frozen"))
    redraw(model, seed=11)
    return model


def live_of(stage_two: StageTwo, family_config: dict | None = None) -> LiveModel:
    return LiveModel(loaded_model("t5", **(family_config or {})), stage_two)


def test_only_fusion_and_side_norms_train_yet_gradients_reach_the_encoder_side(stage_two: StageTwo) -> None:
    """Behaviour 12: the late block, the output projection and the pretrained norms have no gradient."""
    trained = stage_two.trained_parameters()
    assert {name.split(".")[0] for name in trained} == {"fusion", "norm"}
    taps = cached(loaded_model("t5"), stage_two, [ragged_batch("t5")])
    stage_two(taps).square().sum().backward()
    with_gradient = {name for name, parameter in stage_two.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(trained)
    for name, parameter in trained.items():
        if "encoder" in name:  # the only way there is through the late block's cross-attention
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


def decoder_states(live: LiveModel, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Input of the last decoder block before anything is fused into it, and the logits."""
    seen: list[torch.Tensor] = []
    block = live.loaded.model.decoder.block[1]
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    logits = live.logits(batch)
    handle.remove()
    return seen[0], logits


def test_early_decoder_blocks_see_the_plain_encoder_and_the_late_one_the_fused(stage_two: StageTwo) -> None:
    """Behaviour 13."""
    batch = ragged_batch("t5")
    live = live_of(stage_two)
    states, logits = decoder_states(live, batch)
    with torch.no_grad():
        stage_two.norm["encoder"].weight.mul_(1.5)
    moved_states, moved_logits = decoder_states(live, batch)
    assert torch.equal(moved_states, states)
    assert (moved_logits - logits).abs().max() > 1e-3
    pretrained = live.loaded.model.encoder.final_layer_norm.weight
    kept = pretrained.clone()
    try:
        with torch.no_grad():
            pretrained.mul_(1.5)
        moved_states, _ = decoder_states(live, batch)
        assert (moved_states - states).abs().max() > 1e-3
    finally:
        pretrained.data.copy_(kept)


def test_early_decoder_layers_keep_no_activations_in_live_training(stage_two: StageTwo) -> None:
    """The single-pass form must not pay for a gradient that no early layer needs."""
    live = live_of(stage_two)
    asks: dict[int, bool] = {}
    handles = [
        block.register_forward_hook(
            lambda module, args, output, index=index: asks.__setitem__(index, output[0].requires_grad)
        )
        for index, block in enumerate(live.loaded.model.decoder.block[:2])
    ]
    assert live.forward(ragged_batch("t5")).requires_grad
    assert asks == {0: False, 1: False}
    for handle in handles:
        handle.remove()


def test_late_block_uses_the_position_bias_of_block_0(stage_two: StageTwo) -> None:
    """Behaviour 14: with the bias zeroed the logits move."""
    answers = [[[5, 9, 7, 1]], [[8, 6, 5, 9, 1]]]
    taps = cached(loaded_model("t5"), stage_two, [TokenBatch([[5, 6, 7], [8, 9]], None, answers)])
    logits = stage_two(taps)
    assert stage_two.late is not None
    bias = next(p for name, p in stage_two.late.named_parameters() if "relative_attention_bias" in name)
    with torch.no_grad():
        bias.zero_()
    assert (stage_two(taps) - logits).abs().max() > 1e-3


def test_final_side_norms_start_at_ones_and_differ_from_the_pretrained() -> None:
    """Behaviour 15."""
    loaded = loaded_model("t5")
    stage_two = stage_two_of(loaded, StageTwoRecipe(fusion="sherl"))
    last = stage_two_of(loaded, StageTwoRecipe(fusion="last"))
    for name in ("encoder", "decoder"):
        pretrained = loaded.model.get_submodule(name).final_layer_norm.weight
        assert torch.equal(stage_two.norm[name].weight, torch.ones(16))
        assert stage_two.norm[name].weight.requires_grad
        assert torch.equal(last.norm[name].weight, pretrained)
        assert not last.norm[name].weight.requires_grad
        assert not torch.equal(pretrained, torch.ones(16))


def test_cached_equals_live_for_shuffled_ragged_batches(stage_two: StageTwo) -> None:
    """Behaviour 16, in float32: any company and any order; test_parity.py has it against an independent live
    side."""
    loaded, batch, order = loaded_model("t5"), ragged_batch("t5"), [4, 1, 3, 0, 2]
    live = live_of(stage_two).logits(part(batch, order))
    found = stage_two.eval()(cached(loaded, stage_two, [part(batch, [number]) for number in order]))
    torch.testing.assert_close(found, live, rtol=0, atol=1e-5 * max(1.0, float(live.abs().max())))


def greedy_by_full_reruns(live: LiveModel, text: list[int], steps: int) -> list[int]:
    """Token by token; every step runs the whole answer anew, teacher-forced."""
    answer: list[int] = []
    for _ in range(steps):
        logits = live.logits(TokenBatch([text], None, [[[*answer, 0]]]))
        answer.append(int(logits[-1].argmax()))
        if answer[-1] == live.config.eos_token_id:
            break
    return answer


@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("fusion", ["sherl", "weighted_sum", "last"])
def test_generation_with_cache_equals_full_reruns(fusion: str, late: int) -> None:
    """Behaviour 17. Oracle: greedy search by full re-runs of each example alone, without cache and padding."""
    stage_two = stage_two_of(loaded_model("t5"), StageTwoRecipe(fusion=fusion, late=late))
    redraw(stage_two, seed=late)
    live, batch = live_of(stage_two), ragged_batch("t5")
    answers = [greedy_by_full_reruns(live, text, 6) for text in batch.input_ids]
    expected = live.loaded.tokenizer.batch_decode(answers, skip_special_tokens=True)
    assert len(set(expected)) > 1, "answers that are all the same would show little"
    assert live.generate(batch, max_new_tokens=6) == expected
    assert live.generate(batch, max_new_tokens=6, use_cache=False) == expected


def test_beam_search_equals_brute_force() -> None:
    """Oracle: the best of all sequences over 8 tokens, scored teacher-forced; so wide a beam drops none of them."""
    config = {"vocab_size": 8}
    loaded = loaded_model("t5", **config)
    stage_two = stage_two_of(loaded, StageTwoRecipe())
    redraw(stage_two, seed=2)
    live = live_of(stage_two, config)
    texts = [[5, 6, 7, 2], [3], [4, 4, 6]]
    steps, eos = 3, 1
    prefixes = [token for token in range(8) if token != eos]
    answers = [[*head, eos] for count in range(steps) for head in itertools.product(prefixes, repeat=count)]
    answers += [list(item) for item in itertools.product(prefixes, repeat=steps)]
    lengths = torch.tensor([len(answer) for answer in answers])
    expected = []
    for text in texts:
        scores = live.label_scores(TokenBatch([text], None, [answers]))[0] / lengths
        expected.append(answers[int(scores.argmax())])
    found = live.generate(TokenBatch(texts), max_new_tokens=steps, num_beams=60)
    assert found == loaded.tokenizer.batch_decode(expected, skip_special_tokens=True)
    greedy = live.generate(TokenBatch(texts), max_new_tokens=steps)
    assert found != greedy, "a beam that finds what greedy search finds would show little"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_does_not_depend_on_the_company(stage_two: StageTwo, num_beams: int) -> None:
    """Both memories travel with their example through expansion and reordering."""
    live, batch = live_of(stage_two), ragged_batch("t5")
    together = live.generate(batch, max_new_tokens=5, num_beams=num_beams)
    alone = [live.generate(part(batch, [n]), max_new_tokens=5, num_beams=num_beams)[0] for n in range(5)]
    assert together == alone


def test_label_scores_equal_sums_of_token_log_probabilities(stage_two: StageTwo) -> None:
    """Oracle: the logits of each answer alone."""
    live = live_of(stage_two)
    texts, answers = [[5, 6, 7], [9]], [[8, 1], [7, 6, 1], [1]]
    scores = live.label_scores(TokenBatch(texts, None, [answers, answers]))
    assert scores.shape == (2, 3)
    for row, text in enumerate(texts):
        for column, answer in enumerate(answers):
            logits = live.logits(TokenBatch([text], None, [[answer]])).double()
            expected = sum(logits[i].log_softmax(0)[token] for i, token in enumerate(answer))
            torch.testing.assert_close(scores[row, column], expected, rtol=0, atol=1e-4)
    with pytest.raises(DataError, match="same candidate"):
        live.label_scores(TokenBatch(texts, None, [answers, answers[:1]]))


def test_model_that_gives_labels_does_not_generate() -> None:
    loaded = loaded_model("bert")
    live = LiveModel(loaded, stage_two_of(loaded, StageTwoRecipe()))
    with pytest.raises(RecipeError, match="language_model"):
        live.generate(ragged_batch("bert"), max_new_tokens=2)


def test_probe_reads_the_encoder_of_an_encoder_decoder() -> None:
    """Oracle: the mean of the encoder's own answer through the head."""
    loaded = loaded_model("t5")
    stage_two = stage_two_of(loaded, StageTwoRecipe(fusion="last", late=0))
    text = [5, 6, 7, 8]
    states = loaded.model.encoder(input_ids=torch.tensor([text])).last_hidden_state
    expected = stage_two.head.linear(states.mean(1))
    torch.testing.assert_close(LiveModel(loaded, stage_two).logits(TokenBatch([text])), expected.detach())
    assert set(Front(loaded, stage_two.reads).taps) == {"encoder"}
