"""The recipe: one YAML document that says a whole run, checked once where it enters.

A recipe is a shipped name (`sherl`), a file (`my.yaml`) or nothing (all defaults), overlaid by `--set a.b=c`. Unknown
keys are refused with the nearest right one. Reading one imports no method and no torch.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator

from ..storage import keys
from ..storage.errors import RecipeError
from ..storage.nearest import instead
from .recipe_sections import Data, Dropout, Extract, Late, Method, ObjectiveTerm, Section, Train
from .validation import explain_validation


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
        hint = instead(config, shipped_recipes(), "shipped ones are")
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
