"""The full cross: every fusion that ends at the head on every text model, cached against live.

The live side is the model's own forward of each example alone, hooks read its layers, and a fusion's rows for a language
model's head go in front of that head.
"""

import copy
from typing import Any

import pytest
import torch
from fusion_cases import OPTIONS
from live_oracle import redraw
from model_cases import cached, part, producer_of
from stage_two_oracle import double_precision, layer_list, tap_states
from text_models import tiny_model
from tiny_configs import TEXT_CONFIGS, VOCABULARY
from torch import Tensor, nn

from sherl_cache.stages import plugins
from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.front import TokenBatch
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.load import LoadedModel
from sherl_cache.stages.methods.contract import Packed
from sherl_cache.stages.model import StageTwo
from sherl_cache.storage.errors import RecipeError

LENGTHS = (5, 1, 7)


def texts_for(loaded: LoadedModel) -> TokenBatch:
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()

    answers = [[[*ids(1 + number), 1], [*ids(1), 1]] for number in range(len(LENGTHS))]
    texts = [ids(length) for length in LENGTHS]
    return TokenBatch(texts, None, answers if loaded.table.encoder_decoder else None)


def built(loaded: LoadedModel, name: str) -> StageTwo:
    depth = loaded.table.depth(loaded.config, loaded.table.late_streams[0].name)
    recipe = StageTwoRecipe(fusion=name, fusion_options=OPTIONS.get(name, {}), late=0)
    files = late_weights(loaded, depth)
    stage_two = build_stage_two(producer_of(loaded, depth), files.__getitem__, recipe, 0, dtype=torch.float64)
    redraw(stage_two, seed=3)
    return stage_two


def live_side(loaded: LoadedModel, stage_two: StageTwo, batch: TokenBatch) -> tuple[Tensor, dict[str, nn.Module]]:
    model: Any = copy.deepcopy(loaded.model)
    fusion, head, norms = (copy.deepcopy(item) for item in (stage_two.fusion, stage_two.head, stage_two.norm))
    stacks = {next(iter(stage_two.specs)): model}
    if loaded.table.encoder_decoder:
        stacks = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    states = {name: tap_states(layer_list(stack)) for name, stack in stacks.items()}
    outputs, predicts = [], "decoder" in stage_two.specs and loaded.table.encoder_decoder

    def fused(lengths: dict[str, int]) -> Tensor:
        packed = {
            name: Packed(
                torch.stack([states[name][tap][0] for tap in taps]), torch.tensor([lengths[name]]), tuple(taps)
            )
            for name, taps in stage_two.reads.items()
        }
        rows = fusion(packed)[stage_two.exit_stream].rows
        return norms[stage_two.exit_stream](rows) if stage_two.exit_stream in norms else rows

    for number, text in enumerate(batch.input_ids):
        for answer in batch.targets[number] if predicts else [[1]]:
            lengths = {"encoder": len(text), "decoder": len(answer) if predicts else len(text)}

            def put_in(module: nn.Module, args: Any, output: Any, lengths: dict[str, int] = lengths) -> Any:
                output.last_hidden_state = fused(lengths).unsqueeze(0)
                return output

            handle = stacks["decoder"].register_forward_hook(put_in) if predicts else None
            labels = {"labels": torch.tensor([answer])} if loaded.table.encoder_decoder else {}
            output = model(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text)).long(), **labels)
            if handle is not None:
                handle.remove()
                outputs.append(output.logits[0])
                continue
            rows = fused(lengths)
            pooled = {"mean": rows.mean(0), "cls": rows[0], "last": rows[-1]}[head.pooling]
            outputs.append(head.linear(pooled).unsqueeze(0))
    return torch.cat(outputs), {"fusion": fusion, "head": head, "norm": norms}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TEXT_CONFIGS)
@pytest.mark.parametrize("name", plugins.names("fusion"))
def test_cached_logits_and_gradients_equal_live_ones_on_every_text_model(model_type: str, name: str) -> None:
    loaded = tiny_model(model_type, "float64")
    forms = [stream.form(loaded.config) for stream in loaded.table.streams]
    if name == "vqt" and forms[0] is None:
        with pytest.raises(RecipeError, match=r"does not say how its .* layers are put together"):
            built(loaded, name)
        return
    with double_precision(loaded.model):
        stage_two, batch = built(loaded, name), texts_for(loaded)
        found = stage_two(cached(loaded, stage_two, [part(batch, [0]), part(batch, [1, 2])]))
        expected, modules = live_side(loaded, stage_two, batch)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        live = LiveModel(loaded, stage_two).logits(batch)
        torch.testing.assert_close(live, expected.detach(), rtol=0, atol=1e-10)
        trained = stage_two.trained_parameters()
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=found.dtype)
        if not trained:
            return
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
    for prefix, module in modules.items():
        for key, parameter in module.named_parameters():
            if f"{prefix}.{key}" in trained:
                found_gradient = trained[f"{prefix}.{key}"].grad
                bound = 1e-10 * max(1.0, float(parameter.grad.abs().max()))
                torch.testing.assert_close(found_gradient, parameter.grad, rtol=0, atol=bound)
