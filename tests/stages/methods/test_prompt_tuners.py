"""Prompts before late layers, shallow and deep (VPT), against rows put in front by hand."""

import copy

import pytest
import torch
from live_oracle import padded, watch
from model_cases import folder_of, ragged_batch
from torch import nn
from transformers import AutoModel, AutoModelForSeq2SeqLM
from tuner_cases import close, frozen, make, taps_of

from sherl_cache.storage.errors import InvalidInput

pytestmark = pytest.mark.usefixtures("norms_in_float64")


def test_a_late_prompt_on_an_encoder_equals_rows_put_in_front_by_hand() -> None:
    """Oracle: the model's own late layers on a longer state, its mask and its answer's rows by hand."""
    model = make("bert", "prompt", late=2, length=3)
    batch = ragged_batch("bert")
    live = AutoModel.from_pretrained(folder_of("bert"), dtype=torch.float64).eval()
    states = watch(live.encoder.layer)
    ids, mask = padded(batch.input_ids, 0, extra=2)
    live(input_ids=ids, attention_mask=mask, token_type_ids=padded(batch.token_type_ids, 0, extra=2)[0])
    rows = copy.deepcopy(model.tuner.rows["encoder"])
    state = torch.cat([rows.expand(len(ids), -1, -1), states[2]], dim=1)
    seen = torch.cat([torch.ones(len(ids), 3), mask], dim=1).bool()[:, None, None]
    for layer in live.encoder.layer[2:]:
        state = layer(state, seen)
    kept = state[:, 3:]
    mean = (kept * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    found, expected = model(taps_of("bert", model)), copy.deepcopy(model.head).linear(mean)
    close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    close(model.tuner.rows["encoder"].grad, rows.grad)
    assert (rows.grad.abs().amax(1) > 0).all()


def test_a_late_prompt_on_a_decoder_lies_in_front_of_the_first_row() -> None:
    """Oracle: the model's own late blocks, with the position bias of a longer sequence and a causal mask by hand."""
    model = make("t5", "prompt", late=2, length=3)
    batch = ragged_batch("t5")
    live = AutoModelForSeq2SeqLM.from_pretrained(folder_of("t5"), dtype=torch.float64).eval()
    states = watch(live.decoder.block)
    texts = [text for text, answers in zip(batch.input_ids, batch.targets, strict=True) for _ in answers]
    ids, mask = padded(texts, 0)
    labels, valid = padded([answer for answers in batch.targets for answer in answers], 0)
    memory = live.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    live(encoder_outputs=(memory,), attention_mask=mask, labels=labels)
    state = torch.cat([model.tuner.rows["decoder"].expand(len(ids), -1, -1), states[1]], dim=1)
    length = state.shape[1]
    bias = live.decoder.block[0].layer[0].SelfAttention.compute_bias(length, length)
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    for block in live.decoder.block[1:]:
        state = block(state, causal, bias, memory, mask.bool()[:, None, None])[0]
    scale = live.config.d_model**-0.5 if live.config.scale_decoder_outputs else 1.0
    logits = live.lm_head(live.decoder.final_layer_norm(state[:, 3:]) * scale)
    close(model(taps_of("t5", model)), logits[valid.bool()])


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("late", [1, 2])
def test_late_prompt_checks_rows_that_are_masked_out_leave_the_frozen_model(family: str, late: int) -> None:
    """Rows of text keep their places among themselves, whatever stands in front of them."""
    model = make(family, "prompt", late=late, length=3)
    taps = taps_of(family, model)
    assert not torch.allclose(model(taps), frozen(model, taps), atol=1e-3)

    def without_prompt(stack: nn.Module, args: tuple, kwargs: dict) -> tuple:
        mask = kwargs["attention_mask"].clone()
        mask[:, :3] = 0
        return args, {**kwargs, "attention_mask": mask}

    model.late.stream(model.exit_stream).stack.register_forward_pre_hook(without_prompt, with_kwargs=True)
    masked = model(taps)
    model.late.stream(model.exit_stream).stack._forward_pre_hooks.clear()
    close(masked, frozen(model, taps))


def test_late_prompt_checks_the_order_of_rows_matters_only_where_they_have_positions() -> None:
    for family, matters in (("bert", False), ("t5", True)):
        model = make(family, "prompt", late=2, length=4)
        taps = taps_of(family, model)
        before = model(taps)
        with torch.no_grad():
            rows = next(iter(model.tuner.rows.values()))
            rows.copy_(rows[[2, 0, 3, 1]].clone())
        assert torch.allclose(model(taps), before, atol=1e-10) != matters


def test_vpt_checks_joint_prompts_equal_rows_inserted_and_stripped_at_every_layer() -> None:
    model = make("bert", "u_prompt", late=2, joint=True, length=3)
    batch = ragged_batch("bert")
    live = AutoModel.from_pretrained(folder_of("bert"), dtype=torch.float64).eval()
    states = watch(live.encoder.layer)
    ids, mask = padded(batch.input_ids, 0)
    live(input_ids=ids, attention_mask=mask, token_type_ids=padded(batch.token_type_ids, 0)[0])
    state, seen = states[2], torch.cat([torch.ones(len(ids), 3), mask], dim=1).bool()[:, None, None]
    prompts = [copy.deepcopy(part.rows) for _, part in model.tuner.placed]
    for layer, rows in zip(live.encoder.layer[2:], prompts, strict=True):
        state = layer(torch.cat([rows.expand(len(ids), -1, -1), state], dim=1), seen)[:, 3:]
    mean = (state * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    found, expected = model(taps_of("bert", model)), copy.deepcopy(model.head).linear(mean)
    close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (_, part), rows in zip(model.tuner.placed, prompts, strict=True):
        close(part.rows.grad, rows.grad)


def test_vpt_checks_shallow_equals_deep_for_one_late_layer_and_differs_for_two() -> None:
    for late, equal in ((1, True), (2, False)):
        shallow, deep = make("bert", "prompt", late, length=3), make("bert", "u_prompt", late, joint=True, length=3)
        with torch.no_grad():
            for _, part in deep.tuner.placed:
                part.rows.copy_(shallow.tuner.rows["encoder"])
            for own, other in zip(deep.head.parameters(), shallow.head.parameters(), strict=True):
                own.copy_(other)
        taps = taps_of("bert", deep)
        assert torch.allclose(deep(taps), shallow(taps), atol=1e-10) == equal


def test_a_prompt_that_leaves_no_position_for_the_text_is_refused() -> None:
    model = make("bert", "prompt", length=120)
    with pytest.raises(InvalidInput, match=r"120 prompt rows before 9 tokens.*positions for 128.*at most 119"):
        model(taps_of("bert", model))
