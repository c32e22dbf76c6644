"""What each tuner trains on models of published size, against what its paper counts."""

import pytest
from tuner_cases import count, ops_of, tuner_of

pytestmark = pytest.mark.usefixtures("norms_in_float64")


BERT_BASE = ops_of(768, 3072, 12)


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("lora", {}, 294_912),
        ("adapter", {}, 2_379_264),
        ("adapter", {"placement": "pfeiffer", "bottleneck": 48}, 894_528),
        ("parallel_adapter", {}, 304_320),
        ("ia3", {}, 55_296),
        ("bitfit", {}, 101_376),
        ("prefix", {"length": 20}, 368_640),
        ("prefix", {}, 294_912),  # its half of the MAM adapter
    ],
)
def test_counts_on_bert_base_equal_the_published_ones(name: str, options: dict[str, object], published: int) -> None:
    assert count(tuner_of(name, BERT_BASE, **options)) == published


def test_counts_of_ia3_on_t5_base_equal_the_published_one() -> None:
    encoder, decoder = ops_of(768, 3072, 12), ops_of(768, 3072, 12, cross=True)
    assert count(tuner_of("ia3", encoder)) + count(tuner_of("ia3", decoder)) == 129_024


def test_a_generated_prefix_trains_the_published_number_and_stores_fewer() -> None:
    tuner = tuner_of("prefix", BERT_BASE, length=20, hidden=512)
    assert count(tuner) == 20 * 768 + 768 * 512 + 512 + (512 + 1) * 2 * 12 * 768
    stored = count(tuner_of("prefix", BERT_BASE, length=20))
    assert 20 * stored < count(tuner)
