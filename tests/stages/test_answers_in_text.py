"""Causal decoders that answer in text: a text and an answer behind it, against the library's own forward and generation."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import cached, part
from stage_two_oracle import double_precision
from streaming_cases import check_streamed
from text_models import LATE, check_cached_equals_live, stage_two_of, texts_for, tiny_model
from tiny import causal_tokenizer, tiny_causal
from tiny_configs import TEXT_CONFIGS

from sherl_cache.stages.backbones.contract import all_tables, table_for
from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.front import TokenBatch, prove_split
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.load import LoadedModel, load_pretrained
from sherl_cache.stages.methods.contract import Targets
from sherl_cache.stages.packing import last_rows
from sherl_cache.stages.plugins import find
from sherl_cache.stages.prompts import CUE, answers, longest_answer, prompts
from sherl_cache.stages.proof import prove_streaming
from sherl_cache.stages.streamed_model import load_streamed
from sherl_cache.stages.tasks import TASKS
from sherl_cache.storage.errors import DataError, ModelError, RecipeError

CAUSAL = tuple(model_type for model_type in TEXT_CONFIGS if all_tables()[model_type].in_text is not None)
every_decoder = pytest.mark.parametrize("model_type", CAUSAL)


def test_every_causal_decoder_with_a_table_can_answer_in_text() -> None:
    causal = {name for name, table in all_tables().items() if table.streams[0].causal and table.text_form == "template"}
    assert set(CAUSAL) == {name for name in causal if all_tables()[name].streams[0].name == "decoder"}


@every_decoder
def test_cached_logits_and_gradients_equal_the_library_model_with_hooks(model_type: str) -> None:
    """Caps, scales and ties of the output projection are the library's, and so are the rows that predict an answer."""
    loaded = tiny_model(model_type, "float64", "text")
    check_cached_equals_live(loaded, StageTwoRecipe(late=1 + len(model_type) % 2), "float64", extra=3)


@pytest.mark.parametrize(("fusion", "late"), [("sherl", 0), ("weighted_sum", 0), ("last", 3), ("side", 0)])
def test_cached_equals_live_whichever_way_ends_at_the_output_projection(fusion: str, late: int) -> None:
    loaded = tiny_model("gpt2", "float64", "text")
    check_cached_equals_live(loaded, StageTwoRecipe(fusion=fusion, late=late), "float64", extra=1)


@every_decoder
def test_late_of_front_equals_the_language_models_own_logits(model_type: str) -> None:
    loaded = tiny_model(model_type, "float32", "text")
    for late in (1, LATE):
        prove_split(loaded, texts_for(loaded), late)


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox"])
def test_streamed_states_equal_those_of_the_loaded_language_model(model_type: str, tmp_path: Path) -> None:
    whole = tiny_model(model_type, "float32", "text")
    whole.model.save_pretrained(tmp_path)
    causal_tokenizer().save_pretrained(tmp_path)
    streamed = load_streamed(str(tmp_path), answers="text")
    check_streamed(whole, streamed, [texts_for(whole)])
    prove_streaming(streamed, texts_for(whole), late=2)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_loss_of_the_untouched_model_equals_the_librarys_own_on_masked_labels(model_type: str) -> None:
    """Oracle: `labels` of the library, -100 before the answer: only the answer's tokens count, each the same."""
    loaded = tiny_model(model_type, "float64", "text")
    with double_precision(loaded.model):
        # nothing is redrawn: fusion `last` and frozen late layers are the pretrained model
        stage_two = plain(loaded)
        batch = texts_for(loaded)
        select = LiveModel(loaded, stage_two).select(batch)
        found = stage_two(cached(loaded, stage_two, [part(batch, [0, 1]), part(batch, [2, 3, 4])]), select)
        assert batch.targets is not None
        pairs = [(text, answer) for text, row in zip(batch.input_ids, batch.targets, strict=True) for answer in row]
        tokens = torch.tensor([token for _, answer in pairs for token in answer])
        loss = find("objective", "token_cross_entropy").from_options({})(found, Targets(tokens=tokens))
        longest = max(len(text) + len(answer) for text, answer in pairs)
        ids, labels = torch.zeros(len(pairs), longest, dtype=torch.int64), torch.full((len(pairs), longest), -100)
        for row, (text, answer) in enumerate(pairs):
            ids[row, : len(text) + len(answer)] = torch.tensor([*text, *answer])
            labels[row, len(text) : len(text) + len(answer)] = torch.tensor(answer)
        expected = loaded.model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(loss.sum / loss.weight, expected, rtol=0, atol=1e-10)


def plain(loaded: LoadedModel) -> Any:
    """Stage two that computes what the pretrained model does."""
    from model_cases import producer_of

    from sherl_cache.stages.build import build_stage_two
    from sherl_cache.stages.late_weights import late_weights

    recipe = StageTwoRecipe(fusion="last", late=1, mode="frozen")
    return build_stage_two(producer_of(loaded), late_weights(loaded, 2).__getitem__, recipe, 0, dtype=loaded.dtype)


def folder_model(root: Path, model_type: str, seed: int = 0, **config: Any) -> LoadedModel:
    """With a tokenizer, whose `<|endoftext|>` ends texts and pads them."""
    folder = tiny_causal(root / f"{model_type}-{seed}", model_type, seed=seed, language_model=True, **config)
    return load_pretrained(str(folder), answers="text")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return folder_model(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return folder_model(tmp_path_factory.mktemp("llama"), "llama", num_key_value_heads=2)


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Its layers are known by their form, which a ladder builds its own from."""
    return folder_model(tmp_path_factory.mktemp("opt"), "opt", ffn_dim=64, word_embed_proj_dim=32, init_std=0.5)


TEXTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [9, 9, 8, 7, 20, 21, 22]]


def greedy_by_full_reruns(live: LiveModel, text: list[int], steps: int) -> list[int]:
    """Token by token; every step runs the text and the whole answer anew, alone and without padding."""
    answer: list[int] = []
    for _ in range(steps):
        answer.append(int(live.logits(TokenBatch([text], None, [[[*answer, 0]]]))[-1].argmax()))
        if answer[-1] == live.loaded.tokenizer.eos_token_id:
            break
    return answer


@pytest.mark.parametrize(
    ("family", "fusion", "late"),
    [
        ("gpt2", "sherl", 1),
        ("llama", "sherl", 2),
        ("llama", "last", 3),
        ("gpt2", "weighted_sum", 0),
        ("opt", "ladder", 0),
    ],
)
def test_generation_with_cache_and_padding_equals_full_reruns_alone(
    family: str, fusion: str, late: int, request: pytest.FixtureRequest
) -> None:
    """Texts of different lengths stand on the right of their padding; a fusion that sees earlier rows sees no padding."""
    loaded: LoadedModel = request.getfixturevalue(family)
    recipe = StageTwoRecipe(fusion=fusion, late=late)
    live = LiveModel(loaded, stage_two_of(loaded, recipe, "float32"))
    expected = [greedy_by_full_reruns(live, text, 6) for text in TEXTS]
    assert len(set(map(tuple, expected))) > 1, "answers that are all the same would show little"
    end = loaded.tokenizer.eos_token_id
    for use_cache in (True, False):
        found = live.generate_ids(TokenBatch(TEXTS), 6, use_cache=use_cache).tolist()
        assert [cut(row, end) for row in found] == expected


def cut(ids: list[int], end: int) -> list[int]:
    """Up to the token that ends an answer."""
    return ids[: ids.index(end) + 1] if end in ids else ids


def test_untouched_model_generates_what_the_library_does(llama: LoadedModel) -> None:
    """Oracle: the library's own generation of each text alone, without padding; greedy and with beams."""
    live = LiveModel(llama, plain(llama))
    end = llama.tokenizer.eos_token_id
    for beams in (1, 3):
        found = live.generate_ids(TokenBatch(TEXTS), 5, num_beams=beams).tolist()
        for text, answer in zip(TEXTS, found, strict=True):
            whole = llama.model.generate(
                torch.tensor([text]), max_new_tokens=5, num_beams=beams, do_sample=False, pad_token_id=end
            )
            assert cut(answer, end) == cut(whole[0, len(text) :].tolist(), end)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_does_not_depend_on_the_company(gpt2: LoadedModel, num_beams: int) -> None:
    live = LiveModel(gpt2, stage_two_of(gpt2, StageTwoRecipe(), "float32"))
    together = live.generate(TokenBatch(TEXTS), 5, num_beams=num_beams)
    alone = itertools.chain(*(live.generate(TokenBatch([text]), 5, num_beams=num_beams) for text in TEXTS))
    assert together == list(alone)


def test_beam_search_equals_brute_force(gpt2: LoadedModel) -> None:
    """Oracle: the best of all sequences over the vocabulary, scored teacher-forced; so wide a beam drops none of them."""
    live = LiveModel(gpt2, stage_two_of(gpt2, StageTwoRecipe(), "float32"))
    size, end, text = gpt2.config.vocab_size, gpt2.tokenizer.eos_token_id, TEXTS[0]
    others = [token for token in range(size) if token != end]
    # rows of each: what follows the text, what follows the text and one token
    rows = live.logits(TokenBatch([text] * len(others), None, [[[token, 0]] for token in others]))
    first, second = rows.double().log_softmax(1).view(-1, 2, size).unbind(1)
    scores = {(end,): float(first[0, end])}
    for row, token in enumerate(others):
        for last in range(size):
            scores[token, last] = float(first[row, token] + second[row, last]) / 2
    expected = max(scores, key=lambda key: scores[key])
    beams = live.generate_ids(TokenBatch([text]), 2, num_beams=size).tolist()[0]
    assert tuple(cut(beams, end)) == expected


def test_label_scores_equal_sums_of_the_librarys_log_probabilities(gpt2: LoadedModel) -> None:
    live = LiveModel(gpt2, plain(gpt2))
    choices = [[8, 1], [7, 6, 1], [1]]
    scores = live.label_scores(TokenBatch(TEXTS, None, [choices] * len(TEXTS)))
    for row, text in enumerate(TEXTS):
        for column, answer in enumerate(choices):
            logits = gpt2.model(torch.tensor([[*text, *answer]])).logits[0].double().log_softmax(-1)
            expected = sum(logits[len(text) - 1 + place, token] for place, token in enumerate(answer))
            torch.testing.assert_close(scores[row, column], expected.detach(), rtol=0, atol=1e-4)


def test_head_that_would_read_the_answer_and_a_fusion_that_looks_ahead_are_refused() -> None:
    loaded = tiny_model("gpt2", "float32", "text")
    with pytest.raises(RecipeError, match="would read the answers"):
        stage_two_of(loaded, StageTwoRecipe(head="classifier"), "float32")
    with pytest.raises(RecipeError, match="lets a token see later ones"):
        stage_two_of(loaded, StageTwoRecipe(late=0, fusion="sherl", fusion_options={"preset": "clip4clip"}), "float32")


def test_models_that_do_not_answer_so_are_refused() -> None:
    for model_type, wanted, said in (
        ("bert", "text", "only causal decoders with a table and encoder-decoders answer in text"),
        ("t5", "head", "an encoder-decoder answers in text"),
    ):
        with pytest.raises(ModelError, match=said):
            table_for(tiny_model(model_type).config, wanted)
    assert table_for(tiny_model("t5").config, "text") is tiny_model("t5").table


def test_last_rows_are_counted_from_the_end_of_each_segment() -> None:
    found = last_rows(torch.tensor([4, 1, 3]), torch.tensor([2, 1, 0]))
    assert found.tolist() == [False, False, True, True, True, False, False, False]


def test_prompt_keeps_its_cue_whatever_is_cut_and_answers_follow_it_as_written() -> None:
    tokenizer = causal_tokenizer()
    cue = tokenizer(CUE).input_ids
    texts = ["the film is good", "the film " * 40, ""]
    ids, _ = prompts(texts, tokenizer, max_length=30)
    assert [len(row) for row in ids][1] == 30
    assert all(row[-len(cue) :] == cue for row in ids)
    assert tokenizer.decode(ids[0]) == "the film is good\nanswer:"
    found = answers(["positive", "negative"], tokenizer)
    assert [tokenizer.decode(row) for row in found] == [" positive<|endoftext|>", " negative<|endoftext|>"]
    assert longest_answer(TASKS["reviews"], tokenizer) == max(map(len, found))
    with pytest.raises(DataError, match="leaves no room for text"):
        prompts(texts, tokenizer, max_length=len(cue))
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no token that ends a text"):
        answers(["positive"], tokenizer)


def test_what_a_tokenizer_puts_in_front_of_a_text_stays_and_what_it_puts_behind_goes() -> None:
    """Of `<s> text </s>` the end would stand between the text and its answer."""
    from tiny import byte_pair_vocabulary
    from transformers import RobertaTokenizer

    vocabulary, merges = byte_pair_vocabulary()
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges)
    (ids,), _ = prompts(["the film"], tokenizer, max_length=64)
    assert tokenizer.decode(ids) == f"<s>the film{CUE}"
