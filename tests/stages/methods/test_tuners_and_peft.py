"""LoRA and (IA)^3 against peft: logits and gradients."""

import copy
import re
import warnings

import pytest
import torch
from live_oracle import padded
from model_cases import folder_of, ragged_batch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSeq2SeqLM
from tuner_cases import close, draw, make, taps_of

from sherl_cache.stages.model import StageTwo

pytestmark = pytest.mark.usefixtures("norms_in_float64")


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
