"""A model four times a memory limit is extracted inside that limit, and gives the digest of the ordinary way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli import ENVIRONMENT, call
from reviews_csv import write_csv
from tiny import tiny_bert

MIB = 2**20
LIMIT = 192 * MIB
"""Above what the imports take."""
LAYERS = 64
WIDTH = 512

SCRIPT = """
import json
import sys

import sherl_cache.pipeline.training
import sherl_cache.stages.prepare
import transformers.models.bert.modeling_bert
import transformers.models.bert.tokenization_bert
from sherl_cache.pipeline.cli import main
from sherl_cache.pipeline.memory import peak_memory_bytes

baseline = peak_memory_bytes()
assert main(sys.argv[1:]) == 0
print(json.dumps([baseline, peak_memory_bytes()]), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_model_of_four_times_the_limit_is_extracted_inside_it(tmp_path: Path) -> None:
    """VmHWM of a fresh process, less what it has after its imports."""
    model = tiny_bert(
        tmp_path / "model",
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        initializer_range=0.02,
    )
    assert (model / "model.safetensors").stat().st_size > 4 * LIMIT
    data = write_csv(tmp_path / "train.csv", 60)
    taps = ("--taps", f"0,{LAYERS // 2},{LAYERS}")
    words = ("--model", model, "--data", data, *taps, "--batch-tokens", 512, "--unit-memory", "4MiB")
    streamed = ["extract", *map(str, words), "--store", str(tmp_path / "streamed"), "--stream-weights", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *streamed], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    baseline, peak = json.loads(done.stderr.splitlines()[-1])
    print(
        f"imports {baseline / MIB:.0f} MiB, above them {(peak - baseline) / MIB:.0f} MiB, limit {LIMIT / MIB:.0f} MiB"
    )
    assert peak - baseline < LIMIT
    whole = call("extract", *words, "--store", tmp_path / "whole")
    assert whole["digest"] == json.loads(done.stdout)["digest"]
