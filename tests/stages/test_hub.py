"""The hub path without internet: transformers, datasets and our sources against the loopback hub.

Each case is a process of its own, since the hub's client reads its environment when it is imported.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub, write_glue_dataset
from tiny import tiny_t5

SCRIPT = """
import json
import sys

from sherl_cache.stages.sources import open_source
from sherl_cache.stages.splits import split_rules
from sherl_cache.stages.tasks import task_for
from sherl_cache.storage.errors import DataError

def read(name, **options):
    try:
        source = open_source(name, **options)
    except DataError as error:
        return {"error": str(error)}
    task = task_for(None, source, ["sentence"], "label")
    view = split_rules(source, task, "official")
    rows = {split: [list(row) for batch in source.batches(split, ["sentence", "label"])
                    for row in zip(batch["sentence"], batch["label"])] for split in source.splits}
    return {"task": task.name, "labels": task.labels, "splits": view.splits, "rows": rows}

results = [read(name, **options) for name, options in json.loads(sys.argv[1])]
if "--model" in sys.argv:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained("t5-base")
    model = AutoModelForSeq2SeqLM.from_pretrained("t5-base", dtype="auto")
    results.append([tokenizer("the film is good")["input_ids"], model.config.d_model])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    root = tmp_path_factory.mktemp("hub")
    with LoopbackHub() as served:
        served.add_model("google-t5/t5-base", tiny_t5(root / "t5"), alias="t5-base")
        served.add_dataset("nyu-mll/glue", write_glue_dataset(root / "glue"))
        yield served


def run(environment: dict[str, str], *cases: tuple[str, dict[str, Any]], model: bool = False) -> list[Any]:
    command = [sys.executable, "-c", SCRIPT, json.dumps(cases), *(["--model"] if model else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def test_hub_names_load_online_and_again_offline(hub: LoopbackHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    named: tuple[tuple[str, dict[str, Any]], ...] = (("glue/sst2", {}), ("nyu-mll/glue:sst2", {}))
    online = run(hub.environment(home), *named, model=True)
    short, full, (ids, width) = online
    assert short == full
    assert (short["task"], short["labels"]) == ("sst2", ["negative", "positive"])
    assert short["splits"] == ["train", "validation"]
    assert short["rows"]["train"][:2] == [["a dull film number 0 of train ", 0], ["a fine film number 1 of train ", 1]]
    assert [len(short["rows"][split]) for split in ("train", "validation", "test")] == [40, 12, 6]
    assert {label for _, label in short["rows"]["test"]} == {-1}
    assert width == 16
    assert ids[-1] == 1
    assert any(request.startswith("GET /google-t5/t5-base/resolve/") for request in hub.requests)

    before = len(hub.requests)
    assert run(hub.environment(home, HF_HUB_OFFLINE="1"), *named, model=True) == online
    assert len(hub.requests) == before


def test_what_the_hub_lacks_is_our_error(hub: LoopbackHub, tmp_path: Path) -> None:
    unknown, config, revision = run(
        hub.environment(tmp_path / "home"),
        ("nobody/nothing", {}),
        ("glue/sst3", {}),
        ("glue/sst2", {"revision": "no-such-branch"}),
    )
    assert "nobody/nothing" in unknown["error"]
    assert "knows no data set" in unknown["error"]
    assert "configuration sst3" in config["error"]
    assert "sst2" in config["error"]
    assert "no-such-branch" in revision["error"]


def test_offline_without_a_cached_copy_names_the_variable(hub: LoopbackHub, tmp_path: Path) -> None:
    (result,) = run(hub.environment(tmp_path / "home", HF_HUB_OFFLINE="1"), ("glue/sst2", {}))
    assert "HF_HUB_OFFLINE is set" in result["error"]


@pytest.mark.slow  # the client tries again for most of a minute
def test_an_unreachable_hub_is_our_error(hub: LoopbackHub, tmp_path: Path) -> None:
    closed = {**hub.environment(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    (result,) = run(closed, ("glue/sst2", {}))
    assert "http://127.0.0.1:9 cannot be reached" in result["error"]
