"""The front: taps against the library's own hidden states, and the proof of the split."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from model_cases import MAKERS, loaded_model, part, ragged_batch
from torch import nn

from sherl_cache.stages.front import Front, TokenBatch, prove_split
from sherl_cache.stages.packing import padding_of
from sherl_cache.storage.errors import DataError, ModelError

FAMILIES = tuple(MAKERS)


def every_tap(loaded) -> dict[str, tuple[int, ...]]:
    return {
        stream.name: tuple(range(loaded.table.depth(loaded.config, stream.name) + 1)) for stream in loaded.table.streams
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_equal_hidden_states_of_each_example_alone(family: str) -> None:
    """Oracle: `output_hidden_states`; its last entry comes after a final norm, where there is one, and must differ."""
    loaded = loaded_model(family, "float64")
    batch = ragged_batch(family)
    taps = Front(loaded, every_tap(loaded))(batch)
    for number, picture in enumerate([] if batch.pixels is None else batch.pixels):
        states = loaded.model(pixel_values=picture[None], output_hidden_states=True).hidden_states
        check_segment(taps["encoder"], number, states, normed=False)
    for number, text in enumerate(batch.input_ids):
        arguments = {"input_ids": torch.tensor([text]), "output_hidden_states": True}
        if batch.token_type_ids is not None:
            arguments["token_type_ids"] = torch.tensor([batch.token_type_ids[number]])
        if batch.targets is None:
            check_segment(taps["encoder"], number, loaded.model(**arguments).hidden_states, normed=False)
            continue
        for candidate, answer in enumerate(batch.targets[number]):
            output = loaded.model(**arguments, labels=torch.tensor([answer]))
            check_segment(taps["decoder"], 2 * number + candidate, output.decoder_hidden_states, normed=True)
            check_segment(taps["encoder"], number, output.encoder_hidden_states, normed=True)


def check_segment(packed, number: int, states, normed: bool) -> None:
    start = int(packed.lengths[:number].sum())
    rows = packed.taps[:, start : start + int(packed.lengths[number])]
    count = len(states) - normed
    assert packed.depths == tuple(range(len(states)))
    # 1e-5: T5's norms compute in float32 whatever they are given, and kernels differ with the length of a batch
    for tap in range(count):
        torch.testing.assert_close(rows[tap], states[tap][0], rtol=0, atol=1e-5)
    if normed:
        assert not torch.allclose(rows[-1], states[-1][0], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_last_tap_then_final_norm_equals_the_models_answer(family: str) -> None:
    loaded = loaded_model(family)
    batch = part(ragged_batch(family), [2])
    taps = Front(loaded, every_tap(loaded))(batch)
    for stream in loaded.table.streams:
        rows = taps[stream.name].taps[-1]
        if stream.tokens == "target":
            continue
        if stream.norm is not None:
            rows = loaded.model.get_submodule(stream.norm)(rows)
        given = {"pixel_values": batch.pixels}
        if batch.pixels is None:
            given = {"input_ids": torch.tensor(batch.input_ids)}
        if batch.token_type_ids is not None:
            given["token_type_ids"] = torch.tensor(batch.token_type_ids)
        answer = loaded.model.get_submodule(stream.stack)(**given).last_hidden_state[0]
        torch.testing.assert_close(rows, answer, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_above_the_deepest_tap_do_not_run(family: str) -> None:
    loaded = loaded_model(family)
    ran: list[str] = []
    handles = []
    for stream in loaded.table.streams:
        for index, layer in enumerate(loaded.model.get_submodule(stream.layers)):
            name = f"{stream.name}.{index}"
            handles.append(layer.register_forward_hook(lambda *_, name=name: ran.append(name)))
    batch = ragged_batch(family)
    Front(loaded, {"encoder": (0, 2)})(batch)
    assert ran == ["encoder.0", "encoder.1"]
    ran.clear()
    Front(loaded, {"encoder": (0,)})(batch)
    assert ran == ["encoder.0"]
    ran.clear()
    if loaded.table.encoder_decoder:  # decoder layers attend to the whole encoder
        Front(loaded, {"decoder": (1,)})(batch)
        assert ran == ["encoder.0", "encoder.1", "encoder.2", "decoder.0"]
    for handle in handles:
        handle.remove()


def test_front_leaves_the_loaded_model_whole() -> None:
    loaded = loaded_model("t5")
    before = {name: (module, len(module._forward_hooks)) for name, module in loaded.model.named_modules()}
    Front(loaded, {"encoder": (0, 1), "decoder": (0,)})(ragged_batch("t5"))
    after = {name: (module, len(module._forward_hooks)) for name, module in loaded.model.named_modules()}
    assert after == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("late", [1, 2])
def test_split_is_proved(family: str, precision: str, late: int) -> None:
    prove_split(loaded_model(family, precision), ragged_batch(family), late)


def test_split_that_does_not_hold_is_refused() -> None:
    """A model whose last layer reads its first layer's input cannot be cut; the proof must see it."""
    loaded = loaded_model("bert", "float32", hidden_dropout_prob=0.0)
    layers: nn.ModuleList = loaded.model.encoder.layer
    seen: list[torch.Tensor] = []
    first = layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    last = layers[-1].register_forward_hook(lambda module, args, output: output + 0.1 * seen[-1])
    try:
        with pytest.raises(ModelError, match="cannot be split"):
            prove_split(loaded, ragged_batch("bert"))
    finally:
        first.remove()
        last.remove()


def test_example_without_answers_has_no_decoder_rows() -> None:
    loaded = loaded_model("t5")
    batch = ragged_batch("t5", (4, 2))
    taps = Front(loaded, {"encoder": (3,), "decoder": (0, 2)})
    none = taps(TokenBatch(batch.input_ids, None, [[], []]))
    assert none["decoder"].taps.shape == (2, 0, 16)
    assert none["encoder"].lengths.tolist() == [4, 2]
    one = taps(TokenBatch(batch.input_ids, None, [[], [[7, 1]]]))
    assert one["decoder"].lengths.tolist() == [2]


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (TokenBatch([[5], []], None, [[[1]], [[1]]]), "text number 1"),
        (TokenBatch([[5], [6]], None, [[[1], []], [[1]]]), "answer number 1"),
    ],
)
def test_text_without_tokens_is_refused(batch: TokenBatch, match: str) -> None:
    with pytest.raises(DataError, match=match):
        Front(loaded_model("t5"), {"decoder": (1,)})(batch)


@pytest.mark.parametrize("taps", [{"vision": (0,)}, {"encoder": (9,)}, {"encoder": (2, 1)}, {"encoder": (-1,)}])
def test_taps_that_are_not_there_are_refused(taps: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ModelError, match="taps"):
        Front(loaded_model("bert"), taps)


@hypothesis.given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
@hypothesis.settings(deadline=None)
def test_padding_and_packing_are_inverse(lengths: list[int]) -> None:
    padding = padding_of(torch.tensor(lengths))
    rows = torch.randn(sum(lengths), 3)
    padded = padding.pad(rows)
    assert torch.equal(padding.pack(padded), rows)
    assert torch.equal(padded.abs().sum(-1) > 0, padding.mask.bool())
    start = 0
    for number, length in enumerate(lengths):
        assert torch.equal(padded[number, :length], rows[start : start + length])
        start += length
