"""A checkpoint read a few tensors at a time, by the loaded module's own names, with the model itself on the meta device.

What from_pretrained does to a checkpoint is done here without its tensors: names on disk become names of the module by
the library's own tables of renamings, tied tensors are tied, number formats are the ones it would choose. What cannot be
told that way (weights that are fused or split while they are loaded) is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from ..storage.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from .backbones.contract import BackboneTable

SLICE_BYTES = 16 << 20
"""Of a tensor that is read to be hashed or compared, so much at a time."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: a file and the name it has there."""

    file: Path
    key: str


class Checkpoint:
    """Tensors of a model by the names of its state dict, in the number format of the forward."""

    def __init__(self, model: PreTrainedModel, files: list[Path], dtype: torch.dtype, name: str) -> None:
        """model: on the meta device; name: for messages. Raises ModelError where a tensor is missing or has another
        shape, or where weights are converted on their way.
        """
        self._name = name
        self._shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        self._dtypes = _dtypes(model, dtype)
        self._places = _places(model, files, name)
        self._require_shapes()
        self._tie(model.all_tied_weights_keys or {})
        if absent := sorted(self._shapes.keys() - self._places.keys()):
            raise ModelError(
                f"the checkpoint of {name} does not hold {len(absent)} tensors that its config asks for "
                f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}); they would be random, so it cannot be used"
            )

    def names(self, prefix: str = "") -> list[str]:
        """Names of the state dict below a prefix, in its order."""
        return [name for name in self._shapes if name.startswith(prefix)]

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Tensors in memory of their own."""
        found: dict[str, Tensor] = {}
        for file, asked in self._by_file(names).items():
            with safe_open(file, framework="pt") as opened:
                for name in asked:
                    tensor = opened.get_tensor(self._places[name].key)
                    found[name] = tensor.to(self._dtype(name, tensor), copy=True).contiguous()
        return {name: found[name] for name in names}

    def digest(self) -> str:
        """What `load.weights_digest` says of the loaded model, with one slice of a tensor in memory at a time."""
        digest = hashlib.sha256()
        seen: set[Place] = set()
        for name in sorted(self._shapes):
            place, shape = self._places[name], self._shapes[name]
            if place in seen and shape.numel():
                continue
            seen.add(place)
            for number, part in enumerate(self._slices(name)):
                if not number:
                    digest.update(json.dumps([name, str(part.dtype), list(shape)]).encode())
                digest.update(part.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _slices(self, name: str) -> Iterator[Tensor]:
        """A tensor as the forward has it, a few rows at a time; whole where it has no rows."""
        place, shape = self._places[name], self._shapes[name]
        if not shape or not shape.numel():
            yield self.read([name])[name]
            return
        rows = max(1, SLICE_BYTES // (8 * max(1, shape.numel() // shape[0])))
        for first in range(0, shape[0], rows):
            # opened anew each time, since what a map has touched stays resident while it is open
            with safe_open(place.file, framework="pt") as opened:
                part = opened.get_slice(place.key)[first : first + rows]
                kept = part.to(self._dtype(name, part), copy=True).contiguous()
                del part
            yield kept

    def _require_shapes(self) -> None:
        for file, names in self._by_file(self._places).items():
            with safe_open(file, framework="pt") as opened:
                for name in names:
                    shape = list(opened.get_slice(self._places[name].key).get_shape())
                    if shape != list(self._shapes[name]):
                        raise ModelError(
                            f"the checkpoint of {self._name} holds {name} of shape {shape}, and its config says "
                            f"{list(self._shapes[name])}"
                        )

    def _dtype(self, name: str, tensor: Tensor) -> torch.dtype:
        return self._dtypes[name] if tensor.is_floating_point() else tensor.dtype

    def _by_file(self, names: Collection[str]) -> dict[Path, list[str]]:
        files: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            files[self._places[name].file].append(name)
        return files

    def _tie(self, ties: dict[str, str]) -> None:
        """Names that are tied share one place: that of the one which is there, or of the first where all are equal."""
        for target, source in ties.items():
            group = [source, target, *(other for other, its in ties.items() if its == source)]
            there = next((name for name in group if name in self._places), None)
            if there is None:
                continue
            for name in (source, target):
                if name not in self._places or (name != there and self._equal(name, there)):
                    self._places[name] = self._places[there]

    def _equal(self, left: str, right: str) -> bool:
        if self._shapes[left] != self._shapes[right]:
            return False
        pairs = zip(self._slices(left), self._slices(right), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)


def checkpoint_files(source: str, revision: str | None) -> list[Path]:
    """The safetensors files of a model's folder or name on the hub, one or those of an index; fetched to disk where they
    are not here yet. Raises ModelError, OSError and what the hub's client raises.
    """
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    if single := cached_file(source, SAFE_WEIGHTS_NAME, **options):
        return [Path(single)]
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **options)
    if index is None:
        raise FileNotFoundError(f"{source} holds no safetensors")
    names = sorted(set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values()))
    if strange := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ModelError(f"{source}: {SAFE_WEIGHTS_INDEX_NAME} names {strange[0]!r}, which is no file beside it")
    return [Path(str(cached_file(source, name, revision=revision))) for name in names]


def meta_model(table: BackboneTable, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model class with its parameters on the meta device, in eval mode."""
    with torch.device("meta"):
        model = getattr(transformers, table.auto_class).from_config(
            config, attn_implementation=table.attention, dtype=dtype, **table.options
        )
    found: PreTrainedModel = model.eval().requires_grad_(False)
    return found


def checkpoint_dtype(config: Any, files: list[Path]) -> torch.dtype:
    """The checkpoint's own number format: its config's, else that of its first tensor of floating point."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for key in list(opened.keys()):
                tensor = opened.get_tensor(key)
                if tensor.is_floating_point():
                    found: torch.dtype = tensor.dtype
                    return found
    return torch.float32


def _places(model: PreTrainedModel, files: list[Path], name: str) -> dict[str, Place]:
    """Where each tensor of the module lies, for those that the files hold. Raises ModelError."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
    except ImportError as error:
        raise ModelError(f"this version of transformers does not tell how checkpoints are named: {error}") from None
    known, prefix = model.state_dict(), model.base_model_prefix
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    keys: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            keys |= dict.fromkeys(opened.keys(), file)
    places: dict[str, Place] = {}
    for key in sorted(keys, key=dot_natural_key):
        renamed, converter = rename_source_key(key, renamings, converters, prefix, known)
        if renamed not in known and key in known:
            renamed, converter = rename_source_key(key, [], [], prefix, known)
        if renamed not in known:
            continue
        if converter is not None:
            raise ModelError(
                f"{name} cannot be read block by block: its checkpoint holds {renamed} in another form, which is converted "
                "while it is loaded; extract without --stream-weights"
            )
        places.setdefault(renamed, Place(keys[key], key))
    return places


def _dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The number format that from_pretrained gives each tensor of floating point."""
    own = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    kept = {**(dict.fromkeys(model._keep_in_fp32_modules_strict or (), 0))}
    if dtype == torch.float16:
        kept |= dict.fromkeys(model._keep_in_fp32_modules or (), 0)
    if not kept or dtype not in (torch.float16, torch.bfloat16):
        return own
    from transformers.core_model_loading import build_glob_alternation

    pattern = build_glob_alternation(list(kept))[0]
    return {name: torch.float32 if pattern.search(name) else known for name, known in own.items()}
