"""What is special about single families: causal decoders, BART, T5's variants, norms that scale by 1 + weight."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_oracle import redraw
from model_cases import cached
from safetensors.torch import load, load_file, save_file
from text_models import check_cached_equals_live, stage_two_of, texts_for, tiny_model
from tiny import causal_tokenizer, tiny_bart, tiny_causal, tiny_t5
from transformers import AutoModelForSequenceClassification, BartModel, GenerationConfig

from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.front import Front, prove_split
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.load import load_pretrained
from sherl_cache.stages.methods.contract import pool_segments
from sherl_cache.stages.prepare import choose_store_taps
from sherl_cache.stages.tasks import TASKS
from sherl_cache.stages.text import default_max_length, tokenize
from sherl_cache.stages.tokens import TokenBatch
from sherl_cache.storage.errors import DataError, RecipeError


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
def test_every_t5_with_plain_or_gated_ffn_and_tied_or_untied_head(
    model_type: str, tied: bool, feed_forward: str
) -> None:
    """Oracle: the whole model; whether it scales states before the output projection is the class's own secret.

    The library ties whatever a config says, unless the checkpoint holds two tensors that differ.
    """
    loaded = tiny_model(model_type, "float64", feed_forward_proj=feed_forward, tie_word_embeddings=tied)
    if not tied:
        loaded = replace(loaded, model=copy.deepcopy(loaded.model))
        drawn = torch.randn(loaded.model.shared.weight.shape, generator=torch.Generator().manual_seed(4))
        loaded.model.lm_head.weight = torch.nn.Parameter(drawn.double(), requires_grad=False)
    assert (loaded.model.lm_head.weight is loaded.model.shared.weight) is tied
    prove_split(loaded, texts_for(loaded), 2)
    check_cached_equals_live(loaded, StageTwoRecipe(), "float64", extra=1)


def test_checkpoint_with_an_untied_head_keeps_it_apart_from_the_embedding(tmp_path: Path) -> None:
    """T5 1.1 and Flan-T5. Oracle: the tensor that was written."""
    folder = tiny_t5(tmp_path, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    tensors = load_file(folder / "model.safetensors")
    head = torch.randn(tensors["shared.weight"].shape, generator=torch.Generator().manual_seed(4))
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_pretrained(str(folder))
    assert torch.equal(loaded.model.shared.weight, tensors["shared.weight"])
    assert torch.equal(load(late_weights(loaded, 1)["rest.safetensors"])["lm_head.weight"], head)
    prove_split(loaded, TokenBatch([[5, 6, 7]], None, [[[8, 1]]]))


def test_last_pooling_equals_the_librarys_own_sequence_classifier(tmp_path: Path) -> None:
    """Oracle: `...ForSequenceClassification`, which looks for the last token that is no padding."""
    folder = tiny_causal(tmp_path / "model")
    loaded = load_pretrained(str(folder))
    oracle: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, pad_token_id=0).eval()
    stage_two = stage_two_of(loaded, StageTwoRecipe(fusion="last", late=2, mode="frozen"), "float32").eval()
    assert stage_two.head.pooling == "last"
    with torch.no_grad():
        stage_two.head.linear.weight.copy_(oracle.score.weight)
        stage_two.head.linear.bias.zero_()
        texts = [[7, 8, 9], [5], [6, 7, 8, 9, 10, 11]]
        ids = torch.tensor([text + [0] * (6 - len(text)) for text in texts])
        expected = oracle(input_ids=ids, attention_mask=(ids > 0).long()).logits
        found = stage_two(cached(loaded, stage_two, [TokenBatch(texts)]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_last_pooling_takes_the_last_row_of_each_segment() -> None:
    rows = torch.arange(12.0).view(6, 2)
    assert torch.equal(pool_segments(rows, torch.tensor([1, 3, 2]), "last"), rows[[0, 3, 5]])


def test_causal_states_do_not_see_what_follows() -> None:
    """Every tap of a text equals that of a longer text which begins with it."""
    for model_type in ("gpt2", "mistral", "gemma3_text"):
        loaded = tiny_model(model_type, "float32")
        front = Front(loaded, {"decoder": (0, 2, 4)})
        short, whole = front(TokenBatch([[9, 8, 7, 6]])), front(TokenBatch([[9, 8, 7, 6, 5, 10, 11]]))
        torch.testing.assert_close(short["decoder"].taps, whole["decoder"].taps[:, :4], rtol=0, atol=1e-5)


def test_store_of_a_causal_decoder_holds_every_state_of_its_one_stream() -> None:
    loaded = tiny_model("llama")
    assert choose_store_taps(None, loaded.table, loaded.config) == {"decoder": (0, 1, 2, 3, 4)}


def test_padding_token_of_minus_one_pads_with_a_token_there_is() -> None:
    """Old checkpoints of Llama say -1."""
    plain, odd = tiny_model("llama"), tiny_model("llama", pad_token_id=-1)
    taps = [Front(loaded, {"decoder": (4,)})(texts_for(plain))["decoder"].taps for loaded in (plain, odd)]
    assert torch.equal(*taps)


def test_head_language_model_and_generation_of_a_causal_decoder_are_refused() -> None:
    loaded = tiny_model("gpt2")
    with pytest.raises(RecipeError, match="use classifier or regression"):
        stage_two_of(loaded, StageTwoRecipe(head="language_model"), "float32")
    live = LiveModel(loaded, stage_two_of(loaded, StageTwoRecipe(), "float32"))
    with pytest.raises(RecipeError, match="generation needs the head language_model, and this run's is classifier"):
        live.generate(texts_for(loaded), max_new_tokens=2)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "llama", "gpt2"])
def test_new_final_norm_starts_as_a_scale_of_one(model_type: str) -> None:
    """Gemma's norms scale by 1 + weight. Oracle: the norm of a state, by hand."""
    loaded = tiny_model(model_type)
    files = late_weights(loaded, 1)
    producer = {
        "model": {"model_type": model_type, "config": loaded.config_document()},
        "task": {"kind": "classification", "labels": ["no", "yes"]},
        "late": 1,
    }
    stage_two = build_stage_two(producer, files.__getitem__, StageTwoRecipe(fusion="sherl", late=1), 0)
    state = torch.randn(7, 16) * 3
    centred = state - state.mean(-1, keepdim=True) if model_type == "gpt2" else state
    expected = centred / centred.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(stage_two.norm["decoder"](state).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "modernbert", "gpt_neox"])
def test_cast_of_stage_two_leaves_rotary_frequencies_in_float32(model_type: str) -> None:
    """As the library loads a checkpoint in bfloat16."""
    stage_two = stage_two_of(tiny_model(model_type), StageTwoRecipe(), "float32").to(torch.bfloat16)
    frequencies = {name: buffer.dtype for name, buffer in stage_two.late.named_buffers() if "inv_freq" in name}
    assert frequencies
    assert set(frequencies.values()) == {torch.float32}
    assert {parameter.dtype for parameter in stage_two.parameters()} == {torch.bfloat16}


def tokens(texts: list[tuple[str, ...]], task: str = "rte", **options: Any) -> list[list[int]]:
    tokenizer = options.pop("tokenizer", None) or causal_tokenizer()
    return tokenize(texts, TASKS[task], tokenizer, form="template", max_length=options.get("max_length", 128)).ids


def test_template_is_one_text_without_answers() -> None:
    tokenizer = causal_tokenizer()
    found = tokens([("the film is good", "it is great")])
    assert found == [tokenizer("rte sentence1: the film is good sentence2: it is great").input_ids]


def test_empty_text_of_a_tokenizer_that_adds_nothing_is_the_token_that_ends_texts() -> None:
    tokenizer = causal_tokenizer()
    assert tokenizer("").input_ids == []
    assert tokens([("",), ("no",)], "reviews") == [[tokenizer.eos_token_id], tokenizer("no").input_ids]
    tokenizer.eos_token = tokenizer.bos_token = None
    with pytest.raises(DataError, match="a text is empty"):
        tokens([("no",), ("",)], "reviews", tokenizer=tokenizer)


def test_default_length_of_a_model_with_very_many_positions_is_bounded() -> None:
    tokenizer = causal_tokenizer()
    tokenizer.model_max_length = 10**30
    assert [default_max_length(tokenizer, positions) for positions in (None, 700, 131_072)] == [512, 700, 1024]


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> LiveModel:
    """A tiny BART with SHERL as published, every trainable redrawn."""
    loaded = load_pretrained(str(tiny_bart(tmp_path_factory.mktemp("bart") / "model")))
    files = late_weights(loaded, 1)
    producer = {
        "model": {"model_type": "bart", "config": loaded.config_document()},
        "task": {"kind": "classification", "labels": ["no", "yes"]},
        "late": 1,
    }
    stage_two = build_stage_two(producer, files.__getitem__, StageTwoRecipe(mode="frozen"), 0)
    redraw(stage_two, seed=5)
    return LiveModel(loaded, stage_two)


def test_bart_generation_equals_full_reruns(bart: LiveModel) -> None:
    """Oracle: greedy search by full re-runs of each example alone, without cache and padding."""
    texts = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
    answers = []
    for text in texts:
        answer: list[int] = []
        for _ in range(6):
            answer.append(int(bart.logits(TokenBatch([text], None, [[[*answer, 0]]]))[-1].argmax()))
            if answer[-1] == bart.config.eos_token_id:
                break
        answers.append(answer)
    expected = bart.loaded.tokenizer.batch_decode(answers, skip_special_tokens=True)
    assert len(set(expected)) > 1, "answers that are all the same would show little"
    for use_cache, beams in ((True, 1), (False, 1)):
        assert bart.generate(TokenBatch(texts), 6, num_beams=beams, use_cache=use_cache) == expected
    together = bart.generate(TokenBatch(texts), 5, num_beams=3)
    assert together == list(itertools.chain(*(bart.generate(TokenBatch([text]), 5, num_beams=3) for text in texts)))


def test_generation_takes_no_settings_of_the_checkpoint(bart: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a summariser would make every answer 50 tokens long."""
    texts = TokenBatch([[5, 6, 7, 8, 9], [10]])
    expected = bart.generate(texts, 5)
    own = GenerationConfig(min_length=50, forced_bos_token_id=3, no_repeat_ngram_size=1, repetition_penalty=3.0)
    monkeypatch.setattr(bart.loaded.model, "generation_config", own)
    assert bart.generate(texts, 5) == expected
    assert bart.loaded.model.generation_config is own


def test_checkpoint_of_the_bare_bart_model_is_taken(bart: LiveModel, tmp_path: Path) -> None:
    """Checkpoints on the hub lack the bias of the logits and the prefix of its names."""
    bare: BartModel = bart.loaded.model.model
    bare.save_pretrained(tmp_path)
    bart.loaded.tokenizer.save_pretrained(tmp_path)
    assert load_pretrained(str(tmp_path)).weights_digest == bart.loaded.weights_digest
