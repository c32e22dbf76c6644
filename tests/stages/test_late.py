"""The late part: what it opens, what it holds, and what it refuses."""

import pytest
import safetensors.torch
import torch
from model_cases import MAKERS, cached, loaded_model, producer_of, ragged_batch, stage_two_of
from torch import nn

from sherl_cache.stages.build import StageTwoRecipe, build_stage_two, stream_specs
from sherl_cache.stages.late import build_late
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.storage.errors import InvalidInput, ModelError, RecipeError, StoreStale

FAMILIES = tuple(MAKERS)
EARLY = ("embeddings.", "shared.", "embed_tokens", "encoder.block.", "pooler.")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("late", [0, 1, 2])
def test_training_opens_no_early_tensor(family: str, late: int) -> None:
    """A recorder stands where the store's files are opened."""
    loaded = loaded_model(family)
    stream = loaded.table.late_streams[0]
    depth = loaded.table.depth(loaded.config, stream.name)
    files = late_weights(loaded, 2)
    opened: list[str] = []

    def recorder(name: str) -> bytes:
        opened.append(name)
        return files[name]

    stage_two = build_stage_two(producer_of(loaded), recorder, StageTwoRecipe(late=late), 0)
    stage_two(cached(loaded, stage_two, [ragged_batch(family)])).sum().backward()
    late_files = [f"{stream.name}.{index:02d}.safetensors" for index in range(depth - late, depth)]
    assert opened == ["rest.safetensors", *late_files]
    names = [name for file in files.values() for name in safetensors.torch.load(file)]
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith(EARLY)]
    early_layers = [f"{stream.layers}.{index}." for index in range(depth - 2)]
    kept = [name for name in names if name.startswith(tuple(early_layers))]
    assert [name.removesuffix(".weight") for name in kept] == list(stream.kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_weights_equal_the_models(family: str) -> None:
    loaded = loaded_model(family, "bfloat16")
    state = loaded.model.state_dict()
    for file in late_weights(loaded, 2).values():
        for name, tensor in safetensors.torch.load(file).items():
            assert tensor.dtype == state[name].dtype
            assert torch.equal(tensor, state[name])


def held_bytes(module: nn.Module) -> int:
    """Bytes of all storages of a module, each once."""
    storages = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("double", [False, True])
def test_early_parameters_take_no_memory(family: str, double: bool) -> None:
    """Also after a move, which copies tensors."""
    loaded = loaded_model(family)
    stage_two = stage_two_of(loaded, StageTwoRecipe(fusion="last", mode="frozen"))
    taps = cached(loaded, stage_two, [ragged_batch(family)])
    expected = stage_two(taps)
    assert stage_two.late is not None
    if double:
        stage_two.double()
    files = late_weights(loaded, 1)
    itemsize = 8 if double else 4
    needed = sum(len(file) for name, file in files.items() if name != "rest.safetensors") * itemsize // 4
    held = held_bytes(stage_two.late)
    assert held < needed + 4096, "more than the late layer, single zeros and position ids"
    shown = sum(parameter.numel() for parameter in stage_two.late.parameters()) * itemsize
    assert shown > 1.5 * held, "early parameters are there to be saved"
    torch.testing.assert_close(stage_two(taps).float(), expected, rtol=1e-5, atol=1e-5)


def test_untied_output_projection_is_kept_apart_from_the_embedding() -> None:
    loaded = loaded_model("t5", tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    assert loaded.config.scale_decoder_outputs is False
    head = safetensors.torch.load(late_weights(loaded, 1)["rest.safetensors"])["lm_head.weight"]
    assert torch.equal(head, loaded.model.lm_head.weight)


def test_rest_holds_norms_bias_owner_and_tied_projection_once() -> None:
    names = sorted(safetensors.torch.load(late_weights(loaded_model("t5"), 1)["rest.safetensors"]))
    assert names == [
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.final_layer_norm.weight",
        "encoder.final_layer_norm.weight",
        "lm_head.weight",
    ]


@pytest.mark.parametrize(("family", "dropped"), [("bert", "late"), ("t5", "late"), ("t5", "rest")])
def test_missing_late_tensor_is_refused(family: str, dropped: str) -> None:
    loaded = loaded_model(family)
    files = dict(late_weights(loaded, 1))
    name = next(file for file in files if (file == "rest.safetensors") == (dropped == "rest"))
    tensors = safetensors.torch.load(files[name])
    files[name] = safetensors.torch.save(dict(sorted(tensors.items())[1:]))
    with pytest.raises(ModelError, match=f"{name} lacks"):
        build_late(loaded.table, loaded.config, files.__getitem__, 1)


def test_weights_of_another_model_are_refused() -> None:
    bert = loaded_model("bert")
    foreign = late_weights(loaded_model("bert", intermediate_size=48), 1)
    with pytest.raises(ModelError, match="does not fit"):
        build_late(bert.table, bert.config, foreign.__getitem__, 1)
    unknown = {name: safetensors.torch.save({"pooler.weight": torch.zeros(1)}) for name in foreign}
    with pytest.raises(ModelError, match=r"holds pooler\.weight"):
        build_late(bert.table, bert.config, unknown.__getitem__, 1)
    garbage = dict.fromkeys(foreign, b"not safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        build_late(bert.table, bert.config, garbage.__getitem__, 1)


@pytest.mark.parametrize("late", [4, 9, -1])
def test_late_that_leaves_no_early_layer_is_refused(late: int) -> None:
    loaded = loaded_model("bert")
    with pytest.raises(ModelError, match="at most 3"):
        build_stage_two(producer_of(loaded), {}.__getitem__, StageTwoRecipe(late=late), 0)


@pytest.mark.parametrize("late", [5, 9, -1])
def test_more_weights_than_there_are_layers_are_refused(late: int) -> None:
    with pytest.raises(ModelError, match=f"weights of {late} layers: the encoder of this bert model has 4"):
        late_weights(loaded_model("bert"), late)


def test_weights_of_every_layer_can_be_stored_then_those_of_streams_without_late_layers_too() -> None:
    stored = {family: set(late_weights(loaded_model(family), depth)) for family, depth in (("bert", 4), ("t5", 3))}
    assert stored["bert"] == {"rest.safetensors", *(f"encoder.{index:02d}.safetensors" for index in range(4))}
    names = [f"{stream}.{index:02d}.safetensors" for stream in ("encoder", "decoder") for index in range(3)]
    assert stored["t5"] == {"rest.safetensors", *names}
    assert not any(name.startswith("encoder") for name in late_weights(loaded_model("t5"), 2))


def test_more_late_blocks_than_stored_are_refused() -> None:
    loaded = loaded_model("bert")
    with pytest.raises(StoreStale, match="--late 3"):
        build_stage_two(producer_of(loaded, late=2), late_weights(loaded, 2).__getitem__, StageTwoRecipe(late=3), 0)


def test_streams_of_an_encoder_decoder_and_of_a_probe() -> None:
    loaded = loaded_model("t5")
    specs = stream_specs(loaded.table, loaded.config, 2)
    assert [(spec.name, spec.exit, spec.late, spec.deepest) for spec in specs.values()] == [
        ("encoder", "memory", 0, 3),
        ("decoder", "late", 2, 1),
    ]
    probe = stream_specs(loaded.table, loaded.config, 0)
    assert [(spec.name, spec.exit, spec.deepest) for spec in probe.values()] == [("encoder", "head", 3)]
    both = stream_specs(loaded.table, loaded.config, 0, head_stream="last")
    assert [(spec.name, spec.exit, spec.memory, spec.causal) for spec in both.values()] == [
        ("encoder", "memory", None, False),
        ("decoder", "head", "encoder", True),
    ]


def test_late_layers_drop_out_only_when_asked() -> None:
    loaded = loaded_model("bert")
    for asked in (False, True):
        stage_two = stage_two_of(loaded, StageTwoRecipe(fusion="last", late_dropout=asked))
        taps = cached(loaded, stage_two, [ragged_batch("bert")])
        torch.manual_seed(0)
        assert torch.equal(stage_two(taps), stage_two(taps)) is not asked
        assert torch.equal(stage_two.eval()(taps), stage_two(taps))
        assert stage_two.train().training


def test_features_and_head_dropout_act_in_training_alone() -> None:
    loaded = loaded_model("bert")
    for options in ({"features_dropout": 0.5}, {"head_dropout": 0.5}):
        stage_two = stage_two_of(loaded, StageTwoRecipe(fusion="last", **options))
        taps = cached(loaded, stage_two, [ragged_batch("bert")])
        assert not torch.equal(stage_two(taps), stage_two(taps))
        assert torch.equal(stage_two.eval()(taps), stage_two(taps))


def test_same_seed_same_model_and_the_global_generator_is_untouched() -> None:
    loaded = loaded_model("bert")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = (stage_two_of(loaded, StageTwoRecipe(), seed=seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    first, second, third = (model.trainable_state_dict() for model in (one, same, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_trainable_state_restores_the_outputs(family: str) -> None:
    loaded = loaded_model(family)
    source, target = stage_two_of(loaded, StageTwoRecipe(), seed=1), stage_two_of(loaded, StageTwoRecipe(), seed=2)
    with torch.no_grad():
        for parameter in source.trained_parameters().values():
            parameter.add_(0.1)
    state = safetensors.torch.load(safetensors.torch.save(source.trainable_state_dict()))
    target.load_trainable_state_dict(state)
    taps = cached(loaded, source, [ragged_batch(family)])
    assert torch.equal(source(taps), target(taps))
    with pytest.raises(StoreStale, match="the weights lack it"):
        target.load_trainable_state_dict(dict(list(state.items())[1:]))
    with pytest.raises(StoreStale, match="no such parameter"):
        target.load_trainable_state_dict({**state, "extra": torch.zeros(1)})
    name = next(iter(state))
    with pytest.raises(StoreStale, match="has shape"):
        target.load_trainable_state_dict({**state, name: torch.zeros(1, 2, 3)})


def test_parameter_groups_split_late_layers_from_the_rest() -> None:
    loaded = loaded_model("t5")
    stage_two = stage_two_of(loaded, StageTwoRecipe(mode="full"))
    rest, late = stage_two.parameter_groups(1e-3, 1e-4)
    assert (rest["lr"], late["lr"]) == (1e-3, 1e-4)
    assert stage_two.late is not None
    layers = stage_two.late.stream("decoder").layers
    assert list(layers) == [2]
    assert {id(p) for p in late["params"]} == {id(p) for p in layers[2].parameters()}
    assert len(rest["params"]) + len(late["params"]) == len(stage_two.trained_parameters())
    assert len(stage_two_of(loaded, StageTwoRecipe(mode="frozen")).parameter_groups(1.0, 1.0)) == 1


def test_head_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="language_model needs"):
        stage_two_of(loaded_model("bert"), StageTwoRecipe(head="language_model"))


def test_answers_that_belong_to_no_one_are_refused() -> None:
    loaded = loaded_model("t5")
    stage_two = stage_two_of(loaded, StageTwoRecipe())
    batch = ragged_batch("t5", (3, 4))
    taps = cached(loaded, stage_two, [type(batch)(batch.input_ids, None, [[[5, 1]], [[5, 1], [6, 1]]])])
    with pytest.raises(InvalidInput, match="3 answers of 2 examples"):
        stage_two(taps)
