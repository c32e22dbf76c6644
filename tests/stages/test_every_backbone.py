"""Every table of a text model on a tiny random config: the split, cached against live, any cut. A new table joins by
having a config in tests/tiny_configs.py.
"""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from model_cases import cached, producer_of
from stage_two_oracle import double_precision, live_text, live_text_to_text
from streaming_cases import check_streamed
from text_models import LATE, check_cached_equals_live, close, stage_two_of, texts_for, tiny_model
from tiny import causal_tokenizer
from tiny_configs import TEXT_CONFIGS

from sherl_cache.stages.backbones.contract import all_tables
from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.front import Front, TokenBatch, prove_split
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.load import LoadedModel
from sherl_cache.stages.proof import prove_streaming
from sherl_cache.stages.streamed_model import load_streamed

every_type = pytest.mark.parametrize("model_type", TEXT_CONFIGS)


def test_every_text_table_has_a_tiny_config() -> None:
    reading_text = {
        model_type
        for model_type, table in all_tables().items()
        if all(stream.tokens in ("input", "target") for stream in table.streams)
    }
    assert set(TEXT_CONFIGS) == reading_text


@every_type
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_late_of_front_equals_the_models_own_forward(model_type: str, precision: str) -> None:
    """Cut anywhere. Oracle: the whole model; bfloat16 shows what a cast rounds that the model does not."""
    loaded = tiny_model(model_type, precision)
    for late in range(1, LATE + 1):
        prove_split(loaded, texts_for(loaded), late)


@every_type
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_streamed_states_equal_those_of_the_loaded_model(model_type: str, precision: str, tmp_path: Path) -> None:
    """From the files that save_pretrained writes, under the names that they have there."""
    whole = tiny_model(model_type, precision)
    whole.model.save_pretrained(tmp_path)
    causal_tokenizer().save_pretrained(tmp_path)
    streamed = load_streamed(str(tmp_path), dtype=precision)
    check_streamed(whole, streamed, [texts_for(whole)])
    prove_streaming(streamed, texts_for(whole), late=LATE)


@every_type
def test_cached_logits_and_gradients_equal_live(model_type: str) -> None:
    loaded = tiny_model(model_type, "float64")
    check_cached_equals_live(loaded, StageTwoRecipe(late=1 + len(model_type) % 2), "float64", extra=3)


@every_type
def test_lora_on_late_layers_equals_the_models_own_forward_with_merged_weights(model_type: str) -> None:
    """The ops that the table names are where they are said to be; the last layer runs for the rows that are read."""
    loaded = tiny_model(model_type, "float64")
    (stream,) = loaded.table.late_streams
    roles = [role for role in ("query", "value", "out", "ffn_in", "ffn_out") if role in stream.ops]
    head = {} if loaded.table.encoder_decoder else {"head_options": {"pooling": "last"}}
    tuned = StageTwoRecipe(late=2, tuner="lora", tuner_options={"ops": roles, "rank": 2}, **head)
    batch = texts_for(loaded)
    with double_precision(loaded.model):
        stage_two = stage_two_of(loaded, tuned, "float64")
        merged = stage_two_of(loaded, StageTwoRecipe(late=2, mode="frozen", **head), "float64")
        state = {**stage_two.trainable_state_dict(), **stage_two.merged_late_state()}
        absent = merged.load_state_dict({k: v for k, v in state.items() if not k.startswith("tuner.")}, strict=False)
        assert not absent.unexpected_keys
        oracle = live_text_to_text if loaded.table.encoder_decoder else live_text
        expected = oracle(loaded.model, merged, batch, extra=2).output
        found = stage_two(cached(loaded, stage_two, [batch]))
        close(found, expected, "float64")
        close(LiveModel(loaded, stage_two).logits(batch), expected.detach(), "float64")
        with stage_two.without_tuner():
            assert not torch.allclose(stage_two(cached(loaded, stage_two, [batch])), expected, atol=1e-3)
    found.square().mean().backward()
    tuner = {name: p for name, p in stage_two.trained_parameters().items() if name.startswith("tuner.")}
    assert len(tuner) == 2 * 2 * len(roles)
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in tuner.values())
    selects = stage_two.late.stream(stream.name).selected is not None
    assert selects == (loaded.table.attention == "sdpa" and not loaded.table.encoder_decoder)


@every_type
def test_of_one_token_queries_and_keys_say_nothing_and_values_all(model_type: str) -> None:
    """Oracle: a softmax over one key is one. A table that takes one projection for another shows here."""
    loaded = tiny_model(model_type, "float64")
    (stream,) = loaded.table.late_streams
    attentions = {role.removesuffix("query") for role in stream.ops if role.endswith("query")}
    assert attentions == ({"", "cross_"} if stream.memory else {""})
    answers = [[[9]], [[7]]] if stream.memory else None
    batch = TokenBatch([[6], [12]], None, answers)
    for attention in attentions:
        for roles, moves in ((["query", "key"], False), (["value"], True)):
            named = [attention + role for role in roles]
            recipe = StageTwoRecipe(late=2, tuner="lora", tuner_options={"ops": named, "rank": 2})
            stage_two = stage_two_of(loaded, recipe, "float64")
            taps = cached(loaded, stage_two, [batch])
            with torch.no_grad():
                found = stage_two(taps)
                with stage_two.without_tuner():
                    plain = stage_two(taps)
            assert torch.allclose(found, plain, rtol=0, atol=1e-9) is not moves, named


@every_type
def test_live_in_bfloat16_equals_cached_from_bfloat16_taps(model_type: str) -> None:
    """The early part computes in bfloat16 and all of stage two in float32, on both sides: rotary angles too."""
    loaded = tiny_model(model_type, "bfloat16")
    stage_two = stage_two_of(loaded, StageTwoRecipe(late=2), "float32").eval()
    batch = texts_for(loaded)
    with torch.no_grad():
        found = stage_two(cached(loaded, stage_two, [batch]))
    assert found.dtype == torch.float32
    close(LiveModel(loaded, stage_two).logits(batch), found, "float32")


@every_type
def test_layers_above_the_deepest_tap_do_not_run(model_type: str) -> None:
    loaded = tiny_model(model_type)
    ran: list[int] = []
    stream = loaded.table.late_streams[0]
    layers = enumerate(loaded.model.get_submodule(stream.layers))
    handles = [layer.register_forward_hook(lambda *_, index=index: ran.append(index)) for index, layer in layers]
    Front(loaded, {stream.name: (0, 2)})(texts_for(loaded))
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


@every_type
def test_training_opens_the_late_files_alone_and_they_hold_no_early_tensor(model_type: str) -> None:
    """A recorder stands where the store's files are opened."""
    loaded = tiny_model(model_type)
    stream = loaded.table.late_streams[0]
    depth = loaded.table.depth(loaded.config, stream.name)
    files, opened = late_weights(loaded, LATE), []

    def recorder(name: str) -> bytes:
        opened.append(name)
        return files[name]

    build_stage_two(producer_of(loaded, LATE), recorder, StageTwoRecipe(late=1), 0)
    assert opened == ["rest.safetensors", f"{stream.name}.{depth - 1:02d}.safetensors"]
    for name, data in files.items():
        tensors = safetensors.torch.load(data)
        layer = name != "rest.safetensors"
        prefixes = (f"{stream.layers}.{int(name.split('.')[1])}.",) if layer else rest_of(loaded)
        assert all(tensor.startswith(prefixes) for tensor in tensors), name
        assert bool(tensors) is (layer or bool(prefixes))


def rest_of(loaded: LoadedModel) -> tuple[str, ...]:
    """Beside late layers: final norms, what late layers share with early ones, and the way to the vocabulary."""
    shared = (
        "relative_attention_bias",
        "final_layer_norm",
        "final_norm",
        "ln_f",
        "norm",
        "lm_head",
        "final_logits_bias",
    )
    owners = {name.rpartition(".")[0] or name for name in loaded.model.state_dict()}
    outside = [name for name in owners if name.rpartition(".")[2] in shared and ".layers." not in f".{name}."]
    return tuple(outside)


@pytest.mark.slow
@every_type
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("mode", ["frozen", "full"])
@pytest.mark.parametrize("late", [0, 1, 2, 3])
@pytest.mark.parametrize("fusion", ["sherl", "weighted_sum", "last"])
def test_cached_equals_live_in_every_combination(
    model_type: str, fusion: str, late: int, mode: str, precision: str
) -> None:
    loaded = tiny_model(model_type, precision)
    if loaded.table.encoder_decoder and (late == 0 or (fusion == "last" and mode == "frozen")):
        pytest.skip("the encoder alone, or nothing that trains")
    check_cached_equals_live(loaded, StageTwoRecipe(fusion=fusion, late=late, mode=mode), precision, extra=late)
