"""The folder that a trained model is handed on in, laid out as adapters of `peft` are.

    adapter_config.json         what it was trained on and how: all that is needed beside the pretrained model
    adapter_model.safetensors   everything that trained, and nothing else
    README.md                   the model card

Nothing is pickled. The config records size and digest of the weights; unknown keys are refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..stages.environment import versions
from ..storage import commit
from ..storage.errors import ModelError, StoreCorrupt, UsageError
from .card import model_card
from .recipe import parse_recipe
from .trained import Trained
from .validation import explain_validation

if TYPE_CHECKING:
    from torch import Tensor

FORMAT: Final = 1
CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
CARD_FILE: Final = "README.md"
CONFIG_BYTES: Final = 16 << 20
"""No config is larger; a larger file is refused unread."""

_NOT_OF_THE_MODEL = {"extract", "data", "train"}
_SOMETHING_ELSE = {"run.json": "a run", "zarr.json": "a store", "config.json": "a model"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdapterBase(_Part):
    """The pretrained model, beside its name."""

    model_type: str
    config: dict[str, Any]
    weights: str = Field(pattern=r"^[0-9a-f]{64}$")
    """sha256 of its tensors in the number format of the forward."""
    precision: str
    streams: list[str] | None = None
    """Those that were trained on, where the model has others."""
    answers: Literal["text"] | None = None
    """Set where a causal decoder answers in text."""


class AdapterWeights(_Part):
    """The file of weights."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class AdapterConfig(_Part):
    """adapter_config.json; the first five keys are those of `peft`."""

    peft_type: Literal["SHERL"] = "SHERL"
    task_type: str | None
    base_model_name_or_path: str
    revision: str | None
    inference_mode: bool = True
    format: Literal[1] = FORMAT
    base: AdapterBase
    recipe: dict[str, Any]
    """Sections of a recipe that say what the model is."""
    task: dict[str, Any]
    data: dict[str, Any]
    late: Annotated[int, Field(ge=1)]
    """Late blocks that a store of this model holds."""
    weights: AdapterWeights
    result: dict[str, Any] | None
    evals: list[dict[str, Any]]
    versions: dict[str, str]


def write_adapter(trained: Trained, folder: Path, base: str | None = None) -> AdapterConfig:
    """Write the three files; a folder that holds an export is replaced.

    base: name or folder of the pretrained model to write down instead of the one it was loaded by. Raises UsageError
    where the folder holds something else.
    """
    from safetensors.torch import save

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: an export goes into a folder; give another --out")
    for file, what in _SOMETHING_ELSE.items():
        if (folder / file).exists():
            raise UsageError(
                f"{folder} holds {what} ({file}): an export goes into a folder of its own; give another --out"
            )
    blob = save({name: tensor.detach().cpu().contiguous() for name, tensor in trained.weights.items()})
    config = _config(trained, AdapterWeights(bytes=len(blob), sha256=hashlib.sha256(blob).hexdigest()), base)
    folder.mkdir(parents=True, exist_ok=True)
    commit.replace(folder / WEIGHTS_FILE, blob)
    commit.replace(folder / CARD_FILE, model_card(trained, config.base_model_name_or_path, len(blob)).encode())
    commit.replace(folder / CONFIG_FILE, config.model_dump_json(indent=1).encode() + b"\n")
    return config


def read_adapter(folder: Path, where: str | None = None) -> Trained:
    """What `write_adapter` wrote.

    where: what messages call it. Raises ModelError where it is no adapter of ours or of another version, StoreCorrupt
    where the files are not those that were written.
    """
    where = where or str(folder)
    config = _parse(_bytes(folder / CONFIG_FILE, CONFIG_BYTES, where), where)
    weights = _weights(folder / WEIGHTS_FILE, config.weights, where)
    producer = {
        "model": {
            **config.base.model_dump(exclude_none=True),
            "name": config.base_model_name_or_path,
            "revision": config.revision,
        },
        "task": config.task,
        "data": config.data,
        "late": config.late,
    }
    recipe = parse_recipe(config.recipe, where=f"{where}/{CONFIG_FILE}: recipe")
    return Trained(where, producer, recipe, weights, config.result, config.evals)


def download(name: str, revision: str | None) -> Path:
    """The folder of an adapter on the hub, fetched where it is not here yet. Raises ModelError."""
    from huggingface_hub import snapshot_download

    from ..stages.loading_errors import explained

    with explained(name, revision, "adapter"):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{name} on the hub holds no {CONFIG_FILE}: it is no adapter; `sherl-cache export` writes one")
    return folder


def _task_type(kind: str, continues: bool, generative: bool) -> str:
    """As `peft` names them."""
    if kind == "retrieval":
        return "FEATURE_EXTRACTION"
    return "CAUSAL_LM" if continues else "SEQ_2_SEQ_LM" if generative else "SEQ_CLS"


def _config(trained: Trained, weights: AdapterWeights, base: str | None) -> AdapterConfig:
    model, task = trained.producer["model"], trained.producer["task"]
    continues = model.get("answers") == "text"
    generative = task["target_ids"] is not None or trained.recipe.head.name == "language_model"
    return AdapterConfig(
        task_type=_task_type(task["kind"], continues, generative),
        base_model_name_or_path=base or model["name"],
        revision=model["revision"] if base is None else None,
        base=AdapterBase(**{key: model[key] for key in AdapterBase.model_fields if key in model}),
        recipe=trained.recipe.model_dump(mode="json", exclude=_NOT_OF_THE_MODEL),
        task=dict(task),
        data=dict(trained.producer["data"]),
        late=trained.producer["late"],
        weights=weights,
        result=None if trained.result is None else dict(trained.result),
        evals=[dict(record) for record in trained.evals],
        versions=versions(),
    )


def _parse(data: bytes, where: str) -> AdapterConfig:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{where}/{CONFIG_FILE} is damaged (not JSON: {error}); export again") from None
    if not isinstance(document, dict):
        raise StoreCorrupt(f"{where}/{CONFIG_FILE} is damaged (a JSON object is expected); export again")
    kind = document.get("peft_type")
    if kind != "SHERL":
        raise ModelError(f"{where} is an adapter of type {_shown(kind)}, and SHERL is read here; peft reads others")
    if document.get("format") != FORMAT:
        raise ModelError(
            f"{where} has the adapter format {_shown(document.get('format'))}, and this version reads {FORMAT}; "
            "update sherl-cache, or export again with this version"
        )
    try:
        return AdapterConfig.model_validate(document)
    except ValidationError as error:
        lines = explain_validation(error, AdapterConfig)
        raise ModelError("\n".join(f"{where}/{CONFIG_FILE}: {_shown(line)}" for line in lines)) from None


def _weights(path: Path, record: AdapterWeights, where: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = _bytes(path, record.bytes, where)
    if len(data) != record.bytes or hashlib.sha256(data).hexdigest() != record.sha256:
        raise StoreCorrupt(
            f"{where}/{WEIGHTS_FILE} is not the file that {CONFIG_FILE} records; fetch or export both again"
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise StoreCorrupt(f"{where}/{WEIGHTS_FILE} is damaged ({_shown(error)}); export again") from None


def _bytes(path: Path, most: int, where: str) -> bytes:
    """The file, of at most so many bytes."""
    try:
        size = path.stat().st_size
        if size > most:
            raise StoreCorrupt(
                f"{where}/{path.name} has {size:,} bytes, and at most {most:,} are expected; fetch or export it again"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise StoreCorrupt(f"{where} lacks {path.name}; fetch or export it again") from None


def _shown(value: object) -> str:
    """Something out of a document as a message may show it."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return text if len(text) <= 300 else f"{text[:300]}..."
