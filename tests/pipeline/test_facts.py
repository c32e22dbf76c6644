"""Results as people read them, where a command has no better form than its keys."""

from typing import Any

import pytest

from sherl_cache.pipeline.commands._shared import facts


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("metric", "accuracy", "metric: accuracy"),
        ("value", 0.5, "value: 0.5000"),
        ("scores", {"accuracy": 0.75, "f1": 2 / 3}, "scores: accuracy 0.7500, f1 0.6667"),
        ("examples", 67349, "examples: 67,349"),
        ("bytes", 3 << 20, "bytes: 3.0 MiB"),
        ("synthetic", False, "synthetic: no"),
        ("outside_label_set", None, "outside label set: none"),
        ("taps", {"encoder": [0, 6], "decoder": [0]}, "taps: encoder 0 6, decoder 0"),
        ("splits", {"train": 1200}, "splits: train 1,200"),
    ],
)
def test_a_fact_is_a_line_without_brackets_or_quotes(key: str, value: Any, line: str) -> None:
    assert facts({key: value}) == [line]
