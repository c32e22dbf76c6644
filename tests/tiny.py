"""Tiny models with random weights and their tokenizers, saved to a folder as `save_pretrained` would.

Nothing is downloaded and nothing is trained: vocabularies are short word lists over an alphabet of single
characters, so every printable ASCII text has tokens and none is unknown. Weights depend on `seed` alone.
Config keys given by keyword replace the defaults: `tiny_t5(folder, num_layers=4, tie_word_embeddings=False)`.
"""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    DistilBertTokenizer,
    GPT2Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

_WORDS = """
a about acting actor after again all almost although always an and any are as at awful bad be because been
better boring both but by can cast charming classification clever cold comedy could did director does drama
dull each ending every film fine first for found from full funny get good great had hard hardly has have he
her him his hypothesis if in is it its less light like little long look made make man many mean minute more
most movie much music never new nice no not nothing of often old on one only or other out over performance
picture plain plot poor premise question quite rather really rich said same scene score script sea seen
sentence sentence1 sentence2 she short show slow small so some sound sst2 story strong such sweet than that
the their them then there they thin this three time tired to too two under up us very warm was watch way we
weak well went were what when which while who why wild will with without woman word world worth would
writing year yet you young
"""
WORDS = tuple(_WORDS.split())
CHARACTERS = tuple(string.ascii_letters + string.digits + string.punctuation)
_BYTE_PAIRS = """
Ġ t, h e, i n, e r, a n, Ġ a, r e, o n, Ġt he, Ġ s, o u, Ġ w, Ġ f, i t, i s, Ġa n, e n, Ġ i, Ġi s, in g,
l l, Ġ p, Ġ b, o r, Ġan d, Ġ n, o t, Ġn ot, Ġf i, Ġfi l, Ġfil m
"""
BYTE_PAIRS = tuple(_BYTE_PAIRS.split(","))


def save(folder: Path | str, model: PreTrainedModel, tokenizer: Any) -> Path:
    """Save both into `folder`, which is made if it is not there."""
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build(model: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model in eval mode with float32 weights drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(config).eval()


def unigram_tokenizer(**options: Any) -> T5Tokenizer:
    """A T5 tokenizer: ids 0, 1, 2 are pad, eos, unk; `▁0` .. `▁9` and common words are one piece."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -3.0) for word in (*WORDS, *string.digits)]
    pieces += [(character, -6.0) for character in CHARACTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512, **options)


def wordpiece_vocabulary() -> dict[str, int]:
    """Specials, words, single characters and their continuations."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *CHARACTERS,
        *(f"##{c}" for c in CHARACTERS),
    ]
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


def byte_pair_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The 256 bytes as byte-level BPE writes them, and a few merges."""
    merges = [(left, right) for left, right in (pair.split() for pair in BYTE_PAIRS)]
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet()), *map("".join, merges)]
    return {word: number for number, word in enumerate(dict.fromkeys(words))}, merges


def tiny_t5(folder: Path | str, *, seed: int = 0, **config: Any) -> Path:
    """A T5ForConditionalGeneration of 3 + 3 blocks, width 16, tied embeddings as t5-base has them."""
    tokenizer = unigram_tokenizer()
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 3,
        "num_decoder_layers": 3,
        "num_heads": 2,
        "dropout_rate": 0.1,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    return save(folder, build(T5ForConditionalGeneration, T5Config(**(options | config)), seed), tokenizer)


def tiny_bert(folder: Path | str, *, seed: int = 0, **config: Any) -> Path:
    """A BertModel with pooler, 4 blocks, width 32, at most 128 tokens."""
    vocabulary = wordpiece_vocabulary()
    options: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.2,  # the usual 0.02 leaves a net this narrow almost constant
    }
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=128)
    return save(folder, build(BertModel, BertConfig(**(options | config)), seed), tokenizer)


def tiny_distilbert(folder: Path | str, *, seed: int = 0, **config: Any) -> Path:
    """A DistilBertModel of 3 blocks, width 32, at most 128 tokens; it knows no token types."""
    vocabulary = wordpiece_vocabulary()
    options: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 128,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "initializer_range": 0.2,
    }
    tokenizer = DistilBertTokenizer(vocab=vocabulary, model_max_length=128)
    return save(folder, build(DistilBertModel, DistilBertConfig(**(options | config)), seed), tokenizer)


def tiny_roberta(folder: Path | str, *, seed: int = 0, **config: Any) -> Path:
    """A RobertaModel of 3 blocks, width 32; positions start behind the padding index: 130 hold 128 tokens."""
    vocabulary, merges = byte_pair_vocabulary()
    options: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        "type_vocab_size": 1,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.2,
        "pad_token_id": vocabulary["<pad>"],
        "bos_token_id": vocabulary["<s>"],
        "eos_token_id": vocabulary["</s>"],
    }
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=128)
    return save(folder, build(RobertaModel, RobertaConfig(**(options | config)), seed), tokenizer)


def tiny_bart(folder: Path | str, *, seed: int = 0, **config: Any) -> Path:
    """A BartForConditionalGeneration of 3 + 3 blocks, width 16, at most 128 tokens; its answers begin with <s>."""
    vocabulary, merges = byte_pair_vocabulary()
    options: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "d_model": 16,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 128,
        "init_std": 0.2,
        "pad_token_id": vocabulary["<pad>"],
        "bos_token_id": vocabulary["<s>"],
        "eos_token_id": vocabulary["</s>"],
        "forced_eos_token_id": vocabulary["</s>"],
        "decoder_start_token_id": vocabulary["</s>"],
    }
    tokenizer = BartTokenizer(vocab=vocabulary, merges=merges, model_max_length=128)
    return save(folder, build(BartForConditionalGeneration, BartConfig(**(options | config)), seed), tokenizer)


def causal_tokenizer() -> GPT2Tokenizer:
    """Byte-level pieces and <|endoftext|>: no padding token, and nothing is added to a text."""
    vocabulary, merges = byte_pair_vocabulary()
    words = [word for word in vocabulary if not word.startswith("<")]
    return GPT2Tokenizer(
        vocab={word: number for number, word in enumerate([*words, "<|endoftext|>"])},
        merges=merges,
        model_max_length=128,
    )


def tiny_causal(
    folder: Path | str, model_type: str = "gpt2", *, seed: int = 0, language_model: bool = False, **config: Any
) -> Path:
    """A causal decoder of that type with 4 blocks, width 32, at most 128 tokens and no padding token; bare, or with its
    output projection."""
    tokenizer = causal_tokenizer()
    end = tokenizer.eos_token_id
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "n_inner": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    known = AutoConfig.for_model(model_type)
    options = {key: value for key, value in options.items() if hasattr(known, key)}
    made = AutoConfig.for_model(model_type, **(options | config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (AutoModelForCausalLM if language_model else AutoModel).from_config(made).eval()
    return save(folder, model, tokenizer)
