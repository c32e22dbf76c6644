"""What is trained: a model of a published shape with random weights, texts of known length, and a store of both."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..commands import sherl_cache
from ..storage.data import SST2_LENGTHS

if TYPE_CHECKING:
    from pathlib import Path

_WORDS = 2000
_LABELS = ("negative", "positive")
_SPECIAL = {"encoder-decoder": 1, "encoder": 2}
"""Tokens that a tokenizer adds to a text."""


@dataclass(frozen=True)
class Subject:
    """A model and data in a folder: `model`, `data.csv`, `cache`."""

    kind: str
    """encoder-decoder (T5) or encoder (BERT)."""
    size: str
    tokens: int | None
    """Tokens of every example; None: drawn from the lengths of SST-2's training phrases."""
    batch: int
    steps: int
    folder: Path

    @property
    def name(self) -> str:
        lengths = "SST-2 lengths" if self.tokens is None else f"{self.tokens} tokens"
        return f"{ {'encoder-decoder': 'T5', 'encoder': 'BERT'}[self.kind] }-{self.size}, {lengths}, batch {self.batch}"

    @property
    def model(self) -> Path:
        return self.folder / f"{self.kind}-{self.size}"

    @property
    def store(self) -> Path:
        return self.folder / f"cache-{self.kind}-{self.size}-{self.tokens or 'sst2'}"

    def make(self, seed: int = 0) -> None:
        """Build model, data and store, where they are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.model.exists():
            _MAKERS[self.kind](self.model, self.size)
        data = self.store.with_suffix(".csv")
        if not data.exists():
            self._write_texts(data, np.random.default_rng(seed))
        sherl_cache(
            *("extract", "--model", str(self.model), "--data", str(data)),
            *("--text-column", "text", "--label-column", "label"),
            *("--splits", "holdout:8", "--store", str(self.store)),
        )

    def _write_texts(self, path: Path, random: np.random.Generator) -> None:
        count = self.batch * self.steps + 8
        if self.tokens is None:
            counts = np.asarray(SST2_LENGTHS, dtype=np.float64)
            lengths = random.choice(len(counts), size=count, p=counts / counts.sum())
        else:
            lengths = np.full(count, self.tokens)
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for length in lengths.tolist():
                words = random.integers(0, _WORDS, size=max(length - _SPECIAL[self.kind], 1)).tolist()
                rows.writerow([" ".join(f"w{word:04d}" for word in words), _LABELS[int(random.integers(2))]])


def _make_t5(folder: Path, size: str) -> None:
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    shapes: dict[str, dict[str, Any]] = {
        "mini": {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 4},
        "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
        "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    }
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -3.0) for word in (*_LABELS, *(f"w{number:04d}" for number in range(_WORDS)))]
    config = T5Config.from_dict({"vocab_size": 32_128, "decoder_start_token_id": 0, **shapes[size]})
    T5ForConditionalGeneration(config).save_pretrained(folder)
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512).save_pretrained(folder)


def _make_bert(folder: Path, size: str) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    shapes: dict[str, dict[str, Any]] = {
        "mini": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
        "small": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8},
        "deep": {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 24, "num_attention_heads": 2},
        "base": {},
    }
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number:04d}" for number in range(_WORDS))]
    BertModel(BertConfig(**shapes[size])).save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)


_MAKERS = {"encoder-decoder": _make_t5, "encoder": _make_bert}
