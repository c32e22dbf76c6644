"""The recipe: one YAML document that says a whole run, checked once where it enters.

A recipe is a shipped name (`sherl`), a file (`my.yaml`) or nothing (all defaults), overlaid by `--set a.b=c`. Unknown
keys are refused with the nearest right one. The options of a method (`fusion`, `tuner`, `head`, `objective`) stay raw here:
the plug-in that is chosen validates them, so that reading a recipe imports no method and no torch.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..stages.augment import Augment
from ..storage import encoding, keys
from ..storage.errors import InvalidInput, RecipeError
from .validation import explain_validation


class Section(BaseModel):
    """A part of a recipe: frozen, and no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Method(BaseModel):
    """A plug-in by its file name; every other key is an option of that plug-in and is checked by it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str | None = Field(
        default=None, description="file name of the method; null: what the task and the backbone call for"
    )

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class ObjectiveTerm(Method):
    """One term of the objective."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="factor of this term in the sum")


class Extract(Section):
    """What stage one computes. Every field has a flag of the same name."""

    model: str | None = Field(default=None, description="name, folder or builtin/minilm")
    revision: str | None = Field(default=None, description="revision of the model: branch, tag or commit")
    data_revision: str | None = Field(default=None, description="revision of a data set of the hub")
    data: str | None = Field(default=None, description="data set name, file, folder, builtin/reviews or builtin/digits")
    task: str | None = Field(default=None, description="GLUE task of a folder of GLUE files")
    validation: str | None = Field(default=None, description="file of validation rows, for data given as a file")
    text_columns: tuple[str, ...] = Field(default=(), description="text columns, in order, or the column of pictures")
    label_column: str | None = Field(default=None, description="column of the label")
    splits: str = Field(default="official", description="official, paper, or holdout:N")
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="first N training rows; validation stays whole"
    )
    taps: str | None = Field(
        default=None, description='which hidden states, as in "0,2,-1", "every:2", "encoder:0,2;decoder:0"'
    )
    late: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="late blocks whose weights the store holds; null: 2, or one fewer than the model has; as many as the "
        "model has: every block of every stream, for fusions that call early ones",
    )
    max_length: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="tokens an example; longer is cut and counted; null: what tokenizer and model take, at most 1,024",
    )
    views: int = Field(
        default=1,
        ge=1,
        description="views of each training picture; the first is the picture, augment makes the others",
    )
    augment: str = Field(
        default="flip+crop:0.5",
        description="how views beyond the first are drawn: flip (left and right), crop:SHARE (a part of at least that "
        "share of the area), or both with a plus between",
    )
    encoding: str = Field(
        default="bfloat16",
        description="how values are stored: float64, float32, float16, bfloat16 or int8, then +bitround:BITS (float32, "
        "float16) and +zstd[:LEVEL], as in float32+bitround:10+zstd:3",
    )
    precision: Literal["float64", "float32", "float16", "bfloat16"] | None = Field(
        default=None, description="number format of the forward; null: the checkpoint's own"
    )
    batch_tokens: int = Field(default=4096, ge=1, description="padded tokens of one forward batch")
    unit_memory: ByteSize = Field(
        default=ByteSize(512 * 2**20), description="bytes of one unit in all taps; two are held"
    )
    chunk_bytes: ByteSize = Field(
        default=ByteSize(2**20),
        description="smallest bytes of a chunk, the rows of one row group in one tap; the largest is four times that",
    )
    seed: int = Field(default=0, ge=0, description="seed of the order in which examples are written")
    stream_weights: bool = Field(
        default=False,
        description="one block's weights in memory at a time; a unit runs through the model block by block",
    )

    @field_validator("augment")
    @classmethod
    def _canonical_augment(cls, value: str) -> str:
        try:
            return Augment.parse(value).name
        except InvalidInput as error:
            raise ValueError(str(error)) from None

    @field_validator("encoding")
    @classmethod
    def _canonical_encoding(cls, value: str) -> str:
        try:
            return encoding(value).name
        except InvalidInput as error:
            raise ValueError(str(error)) from None


class Late(Section):
    """The late blocks that run after the fusion."""

    blocks: int = Field(default=1, ge=0, description="how many late blocks run; 0: the head reads the fused state")
    mode: Literal["frozen", "full"] | None = Field(
        default=None,
        description="frozen, or full: trained with learning_rate; null: full without a tuner, frozen with one",
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="of the late blocks, when mode is full")


class Dropout(Section):
    """Dropout probabilities in training; the cached early layers ran without."""

    features: float = Field(default=0.0, ge=0, lt=1, description="on the cached taps as they are read")
    late: bool = Field(default=False, description="run the late blocks with the dropout their own config names")
    head: float = Field(default=0.0, ge=0, lt=1, description="on the pooled state before the head")


class Data(Section):
    """How the store is read."""

    seed: int = Field(default=0, ge=0, description="seed of the order of batches")
    batch_examples: Annotated[int, Field(ge=1)] | None = Field(
        default=32, description="examples a batch; null where batch_tokens is given"
    )
    batch_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="padded tokens a batch, instead of batch_examples: examples of like length then share a batch",
    )
    window: int = Field(
        default=16, ge=1, description="row groups shuffled together; more mixes wider and needs more memory"
    )
    read_budget: ByteSize = Field(
        default=ByteSize(2**30), description="bytes that reading may hold; never changes the order"
    )
    threads: int = Field(
        default=1, ge=0, description="threads that read ahead, 0: read when needed; never change the order"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_size(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("batch_tokens") is not None and "batch_examples" not in value:
            return {**value, "batch_examples": None}
        return value

    @model_validator(mode="after")
    def _exactly_one_size(self) -> Data:
        if (self.batch_examples is None) == (self.batch_tokens is None):
            raise ValueError("a batch is cut by batch_examples or by batch_tokens: set one and the other to null")
        return self


class Train(Section):
    """The optimisation: AdamW, warm-up, decay, clipping."""

    epochs: int = Field(default=4, ge=1, description="passes over the training split")
    learning_rate: float = Field(default=1e-3, gt=0, description="of the fusion, the tuner, the new norms and the head")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled, on weights of two dimensions and more")
    warmup: float = Field(default=0.06, ge=0, description="steps of linear warm-up; below 1: that share of all steps")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="decay after the warm-up")
    clip_norm: float | None = Field(default=1.0, gt=0, description="largest norm of the whole gradient; null: none")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="stop after so many epochs without a better validation metric; null: never"
    )
    checkpoint_steps: int = Field(
        default=200, ge=1, description="steps between checkpoints; one more at each epoch's end"
    )
    micro_batch_examples: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="examples that go through the model at once: a batch is split, its gradients are added up; null: all",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16: autocast of the forward; weights, losses and validation stay float32"
    )
    compile: bool = Field(default=False, description="torch.compile of the fusion; the first steps take longer")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")


def _as_list(value: Any) -> Any:
    """One mapping stands for a list of one."""
    return [value] if isinstance(value, dict | ObjectiveTerm) else value


class Recipe(Section):
    """A whole run."""

    name: str = Field(
        default="sherl", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="names the run's folder"
    )
    seed: int = Field(default=0, ge=0, description="of initialisation and dropout")
    extract: Extract = Extract()
    fusion: Method = Method(name="sherl")
    late: Late = Late()
    tuner: Method = Method()
    head: Method = Method()
    objective: Annotated[
        tuple[ObjectiveTerm, ...],
        BeforeValidator(_as_list, json_schema_input_type=ObjectiveTerm | tuple[ObjectiveTerm, ...]),
    ] = Field(default=(ObjectiveTerm(),), min_length=1, description="one objective, or a list: their weighted sum")
    dropout: Dropout = Dropout()
    data: Data = Data()
    train: Train = Train()

    @field_validator("fusion")
    @classmethod
    def _fusion_is_named(cls, value: Method) -> Method:
        return value if value.name is not None else Method(name="sherl", **value.options)

    @field_validator("tuner", mode="before")
    @classmethod
    def _no_tuner(cls, value: Any) -> Any:
        return {} if value is None else value

    @property
    def late_mode(self) -> Literal["frozen", "full"]:
        """Whether the late blocks train, said or not."""
        return self.late.mode or ("full" if self.tuner.name is None else "frozen")

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of a training run: no speed knobs, and not what stage one did (the store's keys
        say that).
        """
        document = self.model_dump(mode="json", exclude={"extract": True})
        for section, key in _SPEED_KNOBS:
            del document[section][key]
        document["late"]["mode"] = self.late_mode
        if (
            document["tuner"] == Method().model_dump()
        ):  # runs without one keep the name that they had before there were any
            del document["tuner"]
        return document

    def run_name(self, store_fingerprint: str) -> str:
        """`<recipe>-<hash>`: the same recipe over the same store always finds the same folder."""
        return f"{self.name}-{keys.digest([self.identity(), store_fingerprint])[:10]}"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_SPEED_KNOBS = (("data", "read_budget"), ("data", "threads"), ("train", "checkpoint_steps"), ("train", "device"))


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    folder = resources.files("sherl_cache.configs") / "recipes"
    return tuple(sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")))


def load_recipe(config: str | None, overrides: tuple[str, ...] = (), **flags: Any) -> Recipe:
    """The recipe `config` names, with `--set` overrides and then command-line flags laid over it.

    `flags` are dotted keys with their value (`**{"train.epochs": 3}`); None means that the flag was not given.
    Raises RecipeError naming the key.
    """
    document = _read_document(config)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise RecipeError(f"--set {override!r}: give it as key=value, for example --set train.epochs=3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {override!r}: {text!r} is not a YAML value ({_one_line(error)})") from None
        _put(document, key.strip().split("."), value)
    for key, value in flags.items():
        if value is not None and value != ():
            _put(document, key.split("."), value)
    return parse_recipe(document, where=config or "the recipe")


def parse_recipe(document: Any, where: str) -> Recipe:
    """A checked recipe from plain YAML or JSON values. Raises RecipeError that names every wrong key."""
    if not isinstance(document, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of sections, not {type(document).__name__}")
    try:
        return Recipe.model_validate(with_exponents(document))
    except ValidationError as error:
        raise RecipeError("\n".join(f"{where}: {line}" for line in explain_validation(error, Recipe))) from None


def _read_document(config: str | None) -> Any:
    if config is None:
        config = "sherl"
    path = Path(config)
    if config in shipped_recipes():
        text = (resources.files("sherl_cache.configs") / "recipes" / f"{config}.yaml").read_text("utf-8")
    elif path.is_file():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{config}: cannot be read as a recipe ({_one_line(error)})") from None
    else:
        near = difflib.get_close_matches(config, shipped_recipes(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"shipped ones are {', '.join(shipped_recipes())}"
        raise RecipeError(f"no recipe {config!r}: neither a file nor a shipped recipe; {hint}")
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"{config}: not YAML ({_one_line(error)})") from None


def _put(document: Any, path: list[str], value: Any) -> None:
    for depth, part in enumerate(path[:-1]):
        inner = document.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{'.'.join(path)}: {'.'.join(path[: depth + 1])} is a value, not a section")
        document = inner
    document[path[-1]] = value


def with_exponents(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text (it wants `1.0e-4`); people write the first, so it is taken as the number it is."""
    if isinstance(value, dict):
        return {key: with_exponents(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_exponents(item) for item in value]
    if isinstance(value, str) and value[:1].isdigit() and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
