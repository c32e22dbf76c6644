"""`fetch` against a hub on loopback: afterwards the whole main job runs without a single request."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from loopback_hub import LoopbackHub, write_glue_dataset
from tiny import tiny_t5

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]


def shell(command: str, environment: dict[str, str], folder: Path, code: int = 0) -> Any:
    words = command.replace("sherl-cache", f"{sys.executable} -m sherl_cache.pipeline").split()
    done = subprocess.run([*words, "--json"], env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    served = tmp_path_factory.mktemp("served")
    with LoopbackHub() as hub:
        model = tiny_t5(served / "t5")
        assert (model / "generation_config.json").is_file()  # what eval generates depends on it
        hub.add_model("google-t5/t5-base", model, alias="t5-base")
        hub.add_dataset("nyu-mll/glue", write_glue_dataset(served / "glue"))
        yield hub


def files_of_models(home: Path) -> set[str]:
    """Names below the snapshots of every model that is in a cache."""
    return {path.name for path in home.glob("hub/models--*/snapshots/*/**/*") if path.is_file()}


def test_after_fetch_the_main_job_runs_offline_and_says_what_it_says_online(hub: LoopbackHub, tmp_path: Path) -> None:
    found: dict[str, dict[str, Any]] = {"online": {}, "offline": {}}
    for name, said in found.items():
        environment = hub.environment(tmp_path / name / "home")
        folder = tmp_path / name
        folder.mkdir()
        if name == "offline":
            fetched = shell("sherl-cache fetch --model t5-base --data glue/sst2", environment, folder)
            jsonschema.validate(fetched, SCHEMAS["fetch"])
            assert fetched["data"]["rows"] == {"train": 40, "validation": 12, "test": 6}
            assert fetched["model"]["bytes"] == (Path(fetched["model"]["folder"]) / "model.safetensors").stat().st_size
            environment["HF_HUB_OFFLINE"] = "1"
        before = len(hub.requests)
        said["extract"] = shell("sherl-cache extract --model t5-base --data glue/sst2", environment, folder)
        said["train"] = shell("sherl-cache train --store ./cache --run run --epochs 1", environment, folder)
        said["eval"] = shell("sherl-cache eval --run run", environment, folder)
        assert (len(hub.requests) == before) == (name == "offline")
    assert found["offline"]["extract"]["digest"] == found["online"]["extract"]["digest"]
    assert found["offline"]["train"]["weights_digest"] == found["online"]["train"]["weights_digest"]
    assert found["offline"]["eval"] == found["online"]["eval"]
    assert files_of_models(tmp_path / "offline" / "home") >= files_of_models(tmp_path / "online" / "home")


def test_what_is_missing_offline_is_named_with_the_command_that_brings_it(hub: LoopbackHub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "home")
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    extract = "sherl-cache extract --model t5-base --data glue/sst2"
    told = shell(extract, offline, tmp_path, code=3)
    assert "the config of the model t5-base is not on this machine" in told
    assert "sherl-cache fetch --model t5-base" in told
    shell("sherl-cache fetch --model t5-base", environment, tmp_path)
    told = shell(extract, offline, tmp_path, code=3)
    assert "glue/sst2: nyu-mll/glue, configuration sst2 is not in the local cache" in told
    assert "sherl-cache fetch --data glue/sst2" in told
    shell("sherl-cache fetch --data glue/sst2", environment, tmp_path)
    before = len(hub.requests)
    assert shell(extract, offline, tmp_path)["examples"] == 52
    assert len(hub.requests) == before


def test_local_places_have_nothing_to_bring_and_nothing_is_an_error(hub: LoopbackHub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "home")
    before = len(hub.requests)
    there = shell(f"sherl-cache fetch --model {tiny_t5(tmp_path / 'model')} --data builtin/reviews", environment, tmp_path)
    assert there["model"]["revision"] is None
    assert "--model t5-base --data glue/sst2" in shell("sherl-cache fetch", environment, tmp_path, code=2)
    assert len(hub.requests) == before
