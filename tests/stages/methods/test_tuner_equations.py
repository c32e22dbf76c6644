"""Each tuner against its own equations, against peft, and against what its paper counts."""

import copy
import re
import warnings

import pytest
import torch
from live_oracle import padded, redraw, watch
from model_cases import cached, folder_of, loaded_model, ragged_batch, stage_two_of
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSeq2SeqLM
from transformers.models.t5.modeling_t5 import T5LayerNorm

from sherl_cache.stages import plugins
from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.methods.contract import LateOps, Op, Part, Tuner
from sherl_cache.stages.methods.tuner.prefix import Prefix
from sherl_cache.stages.model import StageTwo
from sherl_cache.storage.errors import InvalidInput, RecipeError


@pytest.fixture(autouse=True)
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's norm takes its mean square in float32 even of float64; both sides get the same formula in float64."""

    def forward(self: T5LayerNorm, states: Tensor) -> Tensor:
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(T5LayerNorm, "forward", forward)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def make(family: str, name: str, late: int = 1, drawn: bool = True, **options: object) -> StageTwo:
    recipe = StageTwoRecipe(fusion="last", late=late, tuner=name, tuner_options=options)
    model = stage_two_of(loaded_model(family, "float64"), recipe, torch.float64)
    if drawn:
        redraw(model, seed=4)
    return model.eval()


def taps_of(family: str, model: StageTwo) -> dict:
    return cached(loaded_model(family, "float64"), model, [ragged_batch(family)])


def only_part(model: StageTwo, role: str) -> tuple[Op, Part]:
    return next((op, part) for op, part in model.tuner.placed if op.role == role)


def last_layer(model: StageTwo) -> nn.Module:
    stream = model.late.stream(model.late.names[-1])
    return stream.layers[stream.indices[-1]]


def zero(*parameters: Tensor) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()


def ops_of(width: int, ffn: int, layers: int, cross: bool = False, inner: int | None = None) -> LateOps:
    """Ops of a transformer of published size, without weights."""
    inner = inner or width
    found: list[Op] = []
    for layer in range(layers):

        def op(role: str, kind: str, x: int, y: int, inside: dict[str, Op] | None = None, layer: int = layer) -> Op:
            return Op(stream="encoder", layer=layer, role=role, kind=kind, in_width=x, out_width=y, inside=inside or {})

        for prefix, name in (("", "attention"), ("cross_", "cross"))[: 1 + cross]:
            inside = {role: op(prefix + role, "linear", width, inner) for role in ("query", "key", "value")}
            inside["out"] = op(prefix + "out", "linear", inner, width)
            found += [*inside.values(), op(f"{name}_norm", "norm", width, width)]
            found.append(op(f"{prefix}attention", "attention", width, width, inside))
        found += [op("ffn_in", "linear", width, ffn), op("ffn_out", "linear", ffn, width)]
        found += [
            op("ffn_norm", "norm", width, width),
            op("ffn", "ffn", width, width),
            op("block", "block", width, width),
        ]
    return LateOps(tuple(found))


def tuner_of(name: str, ops: LateOps, **options: object) -> Tuner:
    with torch.device("meta"):
        return plugins.find("tuner", name).from_options(options, ops)


def count(tuner: Tuner) -> int:
    return sum(parameter.numel() for parameter in tuner.parameters())


BERT_BASE = ops_of(768, 3072, 12)


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("lora", {}, 294_912),
        ("adapter", {}, 2_379_264),
        ("adapter", {"placement": "pfeiffer", "bottleneck": 48}, 894_528),
        ("parallel_adapter", {}, 304_320),
        ("ia3", {}, 55_296),
        ("bitfit", {}, 101_376),
        ("prefix", {"length": 20}, 368_640),
        ("prefix", {}, 294_912),  # its half of the MAM adapter
    ],
)
def test_counts_on_bert_base_equal_the_published_ones(name: str, options: dict[str, object], published: int) -> None:
    assert count(tuner_of(name, BERT_BASE, **options)) == published


def test_counts_of_ia3_on_t5_base_equal_the_published_one() -> None:
    encoder, decoder = ops_of(768, 3072, 12), ops_of(768, 3072, 12, cross=True)
    assert count(tuner_of("ia3", encoder)) + count(tuner_of("ia3", decoder)) == 129_024


def test_a_generated_prefix_trains_the_published_number_and_stores_fewer() -> None:
    tuner = tuner_of("prefix", BERT_BASE, length=20, hidden=512)
    assert count(tuner) == 20 * 768 + 768 * 512 + 512 + (512 + 1) * 2 * 12 * 768
    stored = count(tuner_of("prefix", BERT_BASE, length=20))
    assert 20 * stored < count(tuner)


# ---- LoRA and (IA)^3 against peft


def with_peft(model: nn.Module, config: object) -> nn.Module:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.inject_adapter_in_model(config, model)


PEFT_PLACES = {
    "bert": {
        "query": "encoder.layer.{}.attention.self.query",
        "key": "encoder.layer.{}.attention.self.key",
        "value": "encoder.layer.{}.attention.self.value",
        "ffn_out": "encoder.layer.{}.output.dense",
    },
    "t5": {
        "query": "decoder.block.{}.layer.0.SelfAttention.q",
        "key": "decoder.block.{}.layer.0.SelfAttention.k",
        "value": "decoder.block.{}.layer.0.SelfAttention.v",
        "cross_query": "decoder.block.{}.layer.1.EncDecAttention.q",
        "cross_key": "decoder.block.{}.layer.1.EncDecAttention.k",
        "cross_value": "decoder.block.{}.layer.1.EncDecAttention.v",
        "ffn_out": "decoder.block.{}.layer.2.DenseReluDense.wo",
    },
}


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_lora_and_ia3_equal_peft_in_logits_and_gradients(family: str, name: str) -> None:
    peft = pytest.importorskip("peft")
    model = make(family, name, late=2)
    batch = ragged_batch(family)
    found = model(taps_of(family, model))
    places = {
        op.name: (PEFT_PLACES[family][op.role].format(op.layer), part, op.role) for op, part in model.tuner.placed
    }
    targets = "|".join(re.escape(place) for place, _, _ in places.values())
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModel
    plain = auto.from_pretrained(folder_of(family), dtype=torch.float64).eval()
    if name == "lora":
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    else:
        inner = "|".join(re.escape(place) for place, _, role in places.values() if role == "ffn_out")
        config = peft.IA3Config(target_modules=targets, feedforward_modules=inner)
    live = with_peft(plain, config).double().eval()
    compared = []
    with torch.no_grad():
        for place, part, _ in places.values():
            module = live.get_submodule(place)
            if name == "lora":
                pairs = [(part.down, module.lora_A["default"].weight), (part.up, module.lora_B["default"].weight)]
            else:
                pairs = [(part.scale, module.ia3_l["default"])]
            for own, theirs in pairs:
                theirs.copy_((own if name == "lora" else 1 + own).reshape(theirs.shape))
                theirs.requires_grad_(True)
            compared += pairs
    output = run_plain(family, live, batch, model)
    close(found, output)
    weights = draw(*found.shape)
    (found * weights).sum().backward()
    (output * weights).sum().backward()
    for own, theirs in compared:
        close(own.grad, theirs.grad.reshape(own.shape))


def run_plain(family: str, live: nn.Module, batch: object, model: StageTwo) -> Tensor:
    """Logits of the whole model: with the fusion `last` stage two is the pretrained model itself."""
    if family == "bert":
        ids, mask = padded(batch.input_ids, 0)
        types = padded(batch.token_type_ids, 0)[0]
        states = live(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        mean = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return copy.deepcopy(model.head).linear(mean)
    texts = [text for text, answers in zip(batch.input_ids, batch.targets, strict=True) for _ in answers]
    ids, mask = padded(texts, 0)
    labels, valid = padded([answer for answers in batch.targets for answer in answers], 0)
    return live(input_ids=ids, attention_mask=mask, labels=labels).logits[valid.bool()]


# ---- adapters


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_adapters_check_1_with_a_second_matrix_of_zeros_the_block_is_the_frozen_one(
    family: str, placement: str
) -> None:
    model = make(family, "adapter", placement=placement)
    for _, part in model.tuner.placed:
        zero(part.bottleneck.up, part.bottleneck.up_bias)
    taps = taps_of(family, model)
    tuned = model(taps)
    with model.without_tuner():
        assert torch.equal(model(taps), tuned)


def bottleneck(part: Part, rows: Tensor, activation: object = F.gelu) -> Tensor:
    inner = part.bottleneck
    return activation(rows @ inner.down.T + inner.down_bias) @ inner.up.T + inner.up_bias


def ffn_of(layer: nn.Module, x: Tensor) -> Tensor:
    inner, outer = layer.intermediate.dense, layer.output.dense
    return F.gelu(x @ inner.weight.T + inner.bias) @ outer.weight.T + outer.bias


def test_adapters_check_2_houlsby_adds_before_residual_and_norm_and_pfeiffer_applies_the_norm_twice() -> None:
    for placement in ("houlsby", "pfeiffer"):
        model = make("bert", "adapter", placement=placement)
        layer, (_, part) = last_layer(model), only_part(model, "ffn")
        x = draw(2, 5, 32)
        plain = copy.deepcopy(layer.output.LayerNorm)
        g = ffn_of(layer, x)
        read = g if placement == "houlsby" else plain(x + g)
        expected = plain(x + g + bottleneck(part, read))
        found = layer.feed_forward_chunk(x)
        close(found, expected)


def test_adapters_check_2_in_a_pre_norm_block_both_placements_read_the_output() -> None:
    for placement in ("houlsby", "pfeiffer"):
        model = make("t5", "adapter", placement=placement)
        layer, (_, part) = last_layer(model).layer[-1], only_part(model, "ffn")
        x = draw(2, 5, 16)
        with model.without_tuner():
            g = layer(x) - x
        close(layer(x), x + g + bottleneck(part, g))


def test_adapters_check_3_only_the_adapters_and_the_head_train() -> None:
    model = make("bert", "adapter", placement="pfeiffer")
    model(taps_of("bert", model)).sum().backward()
    names = set(model.trained_parameters())
    assert names == {
        *(f"tuner.encoder.3.ffn.bottleneck.{name}" for name in ("down", "down_bias", "up", "up_bias")),
        "head.linear.weight",
        "head.linear.bias",
    }
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == names


# ---- parallel adapter, MAM


def test_parallel_adapter_reads_what_enters_the_ffn_and_scales_its_bias_too() -> None:
    """MAM check 3: other frozen FFN weights leave what is added unchanged, and change it for a sequential adapter."""
    x = draw(2, 5, 32)
    added = {}
    for name in ("parallel_adapter", "adapter"):
        model = make("bert", name, ops=["ffn"])
        layer, (_, part) = last_layer(model), only_part(model, "ffn")
        plain = ffn_of(layer, x)
        added[name] = [part.leave(x, plain) - plain, part.leave(x, 2 * plain) - 2 * plain]
        if name == "parallel_adapter":
            close(added[name][0], 4.0 * bottleneck(part, x, F.relu))
            half = make("bert", name, ops=["ffn"], scale=2.0)
            close(2 * (only_part(half, "ffn")[1].leave(x, plain) - plain), added[name][0])
            close(
                layer.feed_forward_chunk(x),
                copy.deepcopy(layer.output.LayerNorm)(x + plain + 4.0 * bottleneck(part, x, F.relu)),
            )
    close(*added["parallel_adapter"])
    assert not torch.allclose(*added["adapter"])


# ---- (IA)^3 and BitFit


def test_ia3_scales_keys_values_and_what_enters_the_second_ffn_matrix() -> None:
    model = make("bert", "ia3")
    layer, x = last_layer(model), draw(2, 5, 32)
    scale = {op.role: part.scale for op, part in model.tuner.placed}
    assert set(scale) == {"key", "value", "ffn_out"}
    key, inner, outer = layer.attention.self.key, layer.intermediate.dense, layer.output.dense
    close(key(x), (x @ key.weight.T + key.bias) * (1 + scale["key"]))
    hidden = F.gelu(x @ inner.weight.T + inner.bias) * (1 + scale["ffn_out"])
    close(outer(F.gelu(inner(x))), hidden @ outer.weight.T + outer.bias)


def test_bitfit_checks_the_key_bias_has_no_gradient_and_the_query_bias_has() -> None:
    model = make("bert", "bitfit")
    output = model(taps_of("bert", model))
    (output * draw(*output.shape)).sum().backward()
    gradient = {op.role: part.bias.grad.abs().max() for op, part in model.tuner.placed}
    assert gradient["key"] < 1e-6
    assert gradient["query"] > 1e-4


def test_bitfit_checks_a_constant_on_the_last_bias_shifts_a_pre_norm_residual_by_it() -> None:
    model = make("t5", "bitfit", drawn=False, ops=["ffn_out"])
    layer, x = last_layer(model).layer[-1], draw(2, 5, 16)
    before = layer(x)
    with torch.no_grad():
        only_part(model, "ffn_out")[1].bias.fill_(0.75)
    close(layer(x), before + 0.75)


# ---- prefix


def plain_attention(query: Tensor, key: Tensor, value: Tensor, extra: int = 0) -> Tensor:
    return ((query @ key.transpose(2, 3)).softmax(-1) @ value).transpose(1, 2)


def gated(part: Part, query: Tensor, key: Tensor, value: Tensor, closed: bool = False) -> Tensor:
    """(1 - g) Attn(q, K, V) + g Attn(q, P_k, P_v), with g the share of the softmax that falls on the prefix."""

    def heads(rows: Tensor) -> Tensor:
        return rows.view(len(rows), 2, -1).transpose(0, 1)[None]

    own, tokens = (query @ item.transpose(2, 3) for item in (heads(part.key), key))
    share = torch.sigmoid(own.logsumexp(-1) - tokens.logsumexp(-1)).transpose(1, 2).unsqueeze(-1)
    share = torch.zeros_like(share) if closed else share
    learned = (own.softmax(-1) @ heads(part.value)).transpose(1, 2)
    return (1 - share) * plain_attention(query, key, value) + share * learned


def attention_part(name: str, **options: object) -> Part:
    torch.manual_seed(0)
    tuner = plugins.find("tuner", name).from_options(options, ops_of(8, 16, 1))
    part = tuner.double().placed[0][1]
    with torch.no_grad():
        for number, parameter in enumerate(part.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=number))
    return part


HEADS = (draw(3, 2, 5, 4), draw(3, 2, 6, 4, seed=1), draw(3, 2, 6, 4, seed=2))
"""Query, key, value: 3 segments, 2 heads, 5 queries of 6 tokens."""


def test_prefix_checks_concatenation_equals_the_gated_sum() -> None:
    part = attention_part("prefix")
    close(part.attend(plain_attention, *HEADS), gated(part, *HEADS))


def test_prefix_checks_order_does_not_matter_and_a_closed_gate_is_the_frozen_attention() -> None:
    part = attention_part("prefix", length=4)
    before = part.attend(plain_attention, *HEADS)
    assert not torch.allclose(before, plain_attention(*HEADS))
    close(gated(part, *HEADS, closed=True), plain_attention(*HEADS))
    with torch.no_grad():
        for rows in (part.key, part.value):
            rows.copy_(rows[[2, 0, 3, 1]].clone())
    close(part.attend(plain_attention, *HEADS), before)


def test_prefix_pitfall_zeros_are_not_the_identity() -> None:
    part = attention_part("prefix")
    zero(part.key, part.value)
    assert not torch.allclose(part.attend(plain_attention, *HEADS), plain_attention(*HEADS), atol=0.1)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_prefix_checks_a_generated_prefix_folds_to_stored_keys_and_values(family: str) -> None:
    model = make(family, "prefix", late=2, hidden=7, length=5)
    stored = make(family, "prefix", late=2, length=5)
    assert isinstance(model.tuner, Prefix)
    stored.tuner.load_state_dict(model.tuner.folded_state())
    others = {name: value for name, value in model.trainable_state_dict().items() if not name.startswith("tuner.")}
    stored.load_trainable_state_dict({**stored.trainable_state_dict(), **others})
    taps = taps_of(family, model)
    close(stored(taps), model(taps))


# ---- late prompt and VPT


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


def frozen(model: StageTwo, taps: dict) -> Tensor:
    with model.without_tuner():
        return model(taps)


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


# ---- U-Tuning


U_OPS = [["attention"], ["ffn"], ["block"], ["attention", "ffn", "block"]]


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("ops", U_OPS, ids=str)
@pytest.mark.parametrize("reads", ["pre", "post"])
@pytest.mark.parametrize("name", ["u_adapter", "u_prefix"])
def test_u_tuning_checks_zero_second_matrices_are_the_frozen_model_for_every_op(
    name: str, reads: str, ops: list[str], family: str
) -> None:
    model = make(family, name, ops=ops, input=reads)
    for _, part in model.tuner.placed:
        zero(*((part.bottleneck.up, part.bottleneck.up_bias) if name == "u_adapter" else (part.value,)))
    taps = taps_of(family, model)
    tuned = model(taps)
    with model.without_tuner():
        assert torch.equal(model(taps), tuned)


def test_u_adapter_adds_to_a_whole_block_from_its_input_or_its_output() -> None:
    for reads in ("pre", "post"):
        model = make("bert", "u_adapter", input=reads)
        layer, (_, part), x = last_layer(model), only_part(model, "block"), draw(2, 5, 32)
        with model.without_tuner():
            y = layer(x)
        close(layer(x), y + bottleneck(part, x if reads == "pre" else y))


def test_u_prefix_is_a_sum_of_two_attentions_and_no_joint_softmax() -> None:
    added, joint = attention_part("u_prefix"), attention_part("prefix")
    with torch.no_grad():
        joint.key.copy_(added.key)
        joint.value.copy_(added.value)

    def heads(rows: Tensor) -> Tensor:
        return rows.view(len(rows), 2, -1).transpose(0, 1)[None].expand(3, -1, -1, -1)

    found = added.attend(plain_attention, *HEADS)
    close(found, plain_attention(*HEADS) + plain_attention(HEADS[0], heads(added.key), heads(added.value)))
    assert not torch.allclose(found, joint.attend(plain_attention, *HEADS), atol=0.1)


def test_u_tuning_checks_the_order_of_learned_rows_does_not_matter() -> None:
    part = attention_part("u_prefix", length=4)
    before = part.attend(plain_attention, *HEADS)
    with torch.no_grad():
        for rows in (part.key, part.value):
            rows.copy_(rows[[2, 0, 3, 1]].clone())
    close(part.attend(plain_attention, *HEADS), before)
    assert not torch.allclose(before, plain_attention(*HEADS))


def test_u_prefix_beside_an_ffn_lets_the_rows_ask() -> None:
    model = make("bert", "u_prefix", ops=["ffn"])
    layer, (_, part), x = last_layer(model), only_part(model, "ffn"), draw(2, 5, 32)
    asked = (x @ part.key.T / 32**0.5).softmax(-1) @ part.value
    close(layer.feed_forward_chunk(x), copy.deepcopy(layer.output.LayerNorm)(x + ffn_of(layer, x) + asked))


def test_u_prompt_makes_keys_and_values_by_the_frozen_projections_behind_the_frozen_norm() -> None:
    for family, normed in (("bert", False), ("t5", True)):
        model = make(family, "u_prompt")
        layer, (_, part) = last_layer(model), only_part(model, "attention")
        rows = part.rows
        if normed:
            inner = layer.layer[0]
            rows = inner.layer_norm.weight * rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6)
            expected = (rows @ inner.SelfAttention.k.weight.T, rows @ inner.SelfAttention.v.weight.T)
        else:
            inner = layer.attention.self
            expected = tuple(rows @ item.weight.T + item.bias for item in (inner.key, inner.value))
        for found, value in zip(part.keys_and_values(), expected, strict=True):
            close(found, value)


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora", {"ops": ["qery"]}, r"tuner\.ops: no op 'qery'.*did you mean query\?.*the late layers have query, key"),
        ("lora", {"ops": ["ffn"]}, r"tuner\.ops: no op 'ffn' that this tuner can tune"),
        ("lora", {"ops": ["cross_query"]}, r"tuner\.ops: no op 'cross_query'"),
        ("adapter", {"ops": ["query"]}, r"tuner\.ops: no op 'query'.*the late layers have attention, ffn"),
        ("lora", {"layers": [0]}, r"tuner\.layers: 0 is no late layer; these are 3"),
        ("lora", {"rank": 0}, r"tuner\.rank: .*0"),
        ("u_prefix", {"ops": ["ffn"], "heads": 5}, r"tuner\.heads: 5 does not divide the width 32 of encoder\.3\.ffn"),
        ("u_prompt", {"ops": ["block"], "joint": True}, r"tuner\.joint: encoder\.3\.block"),
        ("lorra", {}, r"tuner\.name: no tuner named 'lorra' \(did you mean lora\?\)"),
    ],
)
def test_impossible_options_are_refused_by_key(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make("bert", name, drawn=False, **options)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"tuner": "lora", "mode": "full"}, r"late\.mode: full trains the late layers themselves"),
        ({"tuner": "lora", "late": 0, "mode": "frozen"}, r"tuner\.name: lora tunes late layers, and late\.blocks is 0"),
        ({"tuner_options": {"rank": 4}}, r"tuner\.name: options without a tuner; there are adapter"),
    ],
)
def test_recipes_that_leave_nothing_to_tune_are_refused(recipe: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        stage_two_of(loaded_model("bert"), StageTwoRecipe(**recipe))


def test_layers_and_ops_may_be_chosen() -> None:
    model = make("bert", "lora", late=2, ops=["key"], layers=[3])
    assert [op.name for op, _ in model.tuner.placed] == ["encoder.3.key"]


def test_in_the_live_model_a_tuned_first_block_reads_the_fused_state_and_not_the_one_it_replaced() -> None:
    """Oracle: stage two, of which the block is given nothing but the fused state."""
    model = stage_two_of(
        loaded_model("bert", "float64"), StageTwoRecipe(fusion="sherl", tuner="u_adapter"), torch.float64
    ).eval()
    redraw(model, seed=5)
    live = LiveModel(loaded_model("bert", "float64"), model).logits(ragged_batch("bert"))
    close(live, model(taps_of("bert", model)).detach())
