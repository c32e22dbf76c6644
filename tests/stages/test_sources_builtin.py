"""The built-in reviews: always the same, balanced, and hard for a model that counts words."""

import hashlib
import json

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from sherl_cache.stages.sources import Source, open_source


@pytest.fixture(scope="module")
def reviews() -> Source:
    return open_source("builtin/reviews")


def rows(source: Source, split: str) -> tuple[list[str], list[int]]:
    batches = list(source.batches(split, ["text", "label"]))
    return [text for b in batches for text in b["text"]], [label for b in batches for label in b["label"]]


def test_sizes_balance_and_no_shared_sentence(reviews: Source) -> None:
    (train, train_labels), (held, held_labels) = rows(reviews, "train"), rows(reviews, "validation")
    assert reviews.synthetic
    assert (len(train), len(held)) == (4000, 1000) == (reviews.rows("train"), reviews.rows("validation"))
    assert len({*train, *held}) == 5000
    assert sum(train_labels) == 2000
    assert sum(held_labels) == 500


def test_held_out_sentences_use_the_vocabulary_of_training(reviews: Source) -> None:
    texts = [" ".join(rows(reviews, split)[0]).lower() for split in reviews.splits]
    words = [set(text.replace(",", "").replace(".", "").split()) for text in texts]
    assert 200 < len(words[0]) < 1000
    assert words[1] <= words[0]


def test_sentences_never_change(reviews: Source) -> None:
    """A store made today is the same tomorrow: the digest of all rows is pinned."""
    content = json.dumps([rows(reviews, split) for split in reviews.splits]).encode()
    assert hashlib.sha256(content).hexdigest() == "60a2c6bb80151c3f7bf5b958284a9cdb960af0e2fde8cf18067d2c4ef5aceed2"


@pytest.mark.parametrize("longest", [1, 2])
def test_counting_words_is_weak_but_better_than_chance(reviews: Source, longest: int) -> None:
    (train, labels), (held, held_labels) = rows(reviews, "train"), rows(reviews, "validation")
    vectors = TfidfVectorizer(ngram_range=(1, longest))
    model = LogisticRegression(max_iter=1000).fit(vectors.fit_transform(train), labels)
    assert 0.55 < model.score(vectors.transform(held), held_labels) < 0.75


@pytest.mark.parametrize("word", ["but", "although", "not", "hardly", "never"])
def test_a_contrast_or_negation_alone_tells_nothing(reviews: Source, word: str) -> None:
    train, labels = rows(reviews, "train")
    found = [label for text, label in zip(train, labels, strict=True) if word in text.lower().replace(",", "").split()]
    assert len(found) > 100
    assert abs(sum(found) / len(found) - 0.5) < 0.1
