"""`fetch` against a hub on loopback: afterwards the whole main job runs without a single request."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from loopback_hub import LoopbackHub, write_glue_dataset
from tiny import tiny_bert, tiny_t5

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
COMMANDS = """
import contextlib, io, json, sys
from sherl_cache.pipeline.cli import main
found = []
for command in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*command.split(), "--json"])
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


def run(environment: dict[str, str], folder: Path, *commands: str) -> list[Any]:
    """What commands print that run one after another in one fresh process; for one that fails, its code and its words."""
    words = [sys.executable, "-c", COMMANDS, *(command.removeprefix("sherl-cache ") for command in commands)]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(out) if code == 0 else (code, err) for code, out, err in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    served = tmp_path_factory.mktemp("served")
    with LoopbackHub() as hub:
        model = tiny_t5(served / "t5")
        assert (model / "generation_config.json").is_file()  # what eval generates depends on it
        hub.add_model("google-t5/t5-base", model, alias="t5-base")
        hub.add_model("owner/other", tiny_bert(served / "bert"))
        hub.add_dataset("nyu-mll/glue", write_glue_dataset(served / "glue"))
        yield hub


@pytest.mark.slow
def test_what_was_fetched_is_all_that_extract_needs_and_what_was_not_is_named_with_its_command(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    environment = hub.environment(tmp_path / "home")
    [fetched, nothing] = run(
        environment, tmp_path, "sherl-cache fetch --model t5-base --data glue/sst2", "sherl-cache fetch"
    )
    jsonschema.validate(fetched, SCHEMAS["fetch"])
    assert fetched["data"]["rows"] == {"train": 40, "validation": 12, "test": 6}
    assert fetched["model"]["bytes"] == (Path(fetched["model"]["folder"]) / "model.safetensors").stat().st_size
    assert nothing[0] == 2
    assert "--model t5-base --data glue/sst2" in nothing[1]
    before = len(hub.requests)
    no_model, no_data, extracted = run(
        {**environment, "HF_HUB_OFFLINE": "1"},
        tmp_path,
        "sherl-cache extract --model owner/other --data glue/sst2",
        "sherl-cache extract --model t5-base --data glue/rte --set extract.data_revision=v1",
        "sherl-cache extract --model t5-base --data glue/sst2",
    )
    assert len(hub.requests) == before
    assert no_model[0] == no_data[0] == 3
    assert "the config of the model owner/other is not on this machine" in no_model[1]
    assert "sherl-cache fetch --model owner/other;" in no_model[1]
    assert "glue/rte: nyu-mll/glue, configuration rte at revision v1 is not in the local cache" in no_data[1]
    assert "sherl-cache fetch --data glue/rte --set extract.data_revision=v1" in no_data[1]
    assert extracted["examples"] == 52


def files_of_models(home: Path) -> set[str]:
    """Names below the snapshots of every model that is in a cache."""
    return {path.name for path in home.glob("hub/models--*/snapshots/*/**/*") if path.is_file()}


@pytest.mark.slow
def test_after_fetch_the_main_job_says_offline_what_it_says_online(hub: LoopbackHub, tmp_path: Path) -> None:
    job = (
        "sherl-cache extract --model t5-base --data glue/sst2",
        "sherl-cache train --store ./cache --run run --epochs 1",
        "sherl-cache eval --run run",
    )
    found = {}
    for name in ("online", "offline"):
        environment = hub.environment(tmp_path / name / "home")
        (tmp_path / name).mkdir()
        if name == "offline":
            run(environment, tmp_path, "sherl-cache fetch --model t5-base --data glue/sst2")
            environment["HF_HUB_OFFLINE"] = "1"
        before = len(hub.requests)
        found[name] = run(environment, tmp_path / name, *job)
        assert (len(hub.requests) == before) == (name == "offline")
    online, offline = found["online"], found["offline"]
    assert offline[0]["digest"] == online[0]["digest"]
    assert offline[1]["weights_digest"] == online[1]["weights_digest"]
    assert offline[2] == online[2]
    assert files_of_models(tmp_path / "offline" / "home") >= files_of_models(tmp_path / "online" / "home")
