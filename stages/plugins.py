"""Find a method by its file name: `methods/fusion/sherl.py` is `fusion: {name: sherl}`.

Listing reads names only; finding imports the chosen file and no other, so a broken neighbour hurts nobody.
Other packages join through the entry point groups `sherl_cache.fusion`, `sherl_cache.tuner`, `sherl_cache.head`
and `sherl_cache.objective`, each point a module or a `module:Class`; a built-in file wins over a point of its
name. Importing this file imports no torch.
"""

import inspect
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ..storage.errors import RecipeError
from ..storage.nearest import did_you_mean

if TYPE_CHECKING:
    from .methods.contract import Method

AXES = ("fusion", "tuner", "head", "objective")

AnyModel = TypeVar("AnyModel", bound=BaseModel)


@dataclass(frozen=True)
class Option:
    """One option of a method; `default` is what holds when a recipe is silent (None where `required`)."""

    name: str
    type: str
    default: Any
    required: bool
    help: str


@dataclass(frozen=True)
class Description:
    """What `sherl-cache methods` prints of one method."""

    axis: str
    name: str
    summary: str
    about: str
    """The rest of the class's docstring, its paragraphs parted by empty lines."""
    source: str
    trains: str
    """Formula of what trains; see `Method.trains`."""
    package: str
    """The distribution that brings it."""
    options: tuple[Option, ...]


def names(axis: str) -> tuple[str, ...]:
    """Names of the methods of an axis, sorted, without importing any."""
    return tuple(sorted({*_built_in(axis), *_entry_points(axis)}))


def find(axis: str, name: str) -> "type[Method]":
    """The class of a method; imports its file and no other.

    Raises RecipeError when there is no such method, when its file cannot be imported, and when the file does
    not hold exactly one subclass of its axis.
    """
    where = f"{axis}.name"
    if name in _built_in(axis):
        module_name, attribute = f"{_package(axis).__name__}.{name}", None
    elif name in (points := _entry_points(axis)):
        module_name, attribute = points[name].module, points[name].attr or None
    else:
        known = names(axis)
        raise RecipeError(f"{where}: no {axis} named {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    try:
        module = import_module(module_name)
    except Exception as error:
        raise RecipeError(
            f"{where}: {name!r} cannot be imported from {module_name} ({type(error).__name__}: {error}); "
            f"repair that file or choose another {axis}"
        ) from error
    base = _base(axis)
    if attribute is not None:
        candidates: list[Any] = [getattr(module, attribute, None)]
    else:
        candidates = [value for value in vars(module).values() if getattr(value, "__module__", "") == module_name]
    found: list[Any] = [value for value in candidates if _is_method(value, base)]
    if len(found) != 1:
        raise RecipeError(
            f"{where}: {name!r} ({module_name}) holds {len(found)} subclasses of {base.__name__}; "
            "a method is a file with exactly one"
        )
    method: type[Method] = found[0]
    return method


def describe(axis: str, name: str) -> Description:
    """Summary, source and options of a method, read from its class.

    Raises RecipeError as `find` does.
    """
    method = find(axis, name)
    summary, _, about = (inspect.getdoc(method) or "").partition("\n")
    options = tuple(
        Option(
            name=key,
            type=_type_name(field.annotation),
            default=None if field.is_required() else field.get_default(call_default_factory=True),
            required=field.is_required(),
            help=field.description or "",
        )
        for key, field in method.Config.model_fields.items()
    )
    return Description(
        axis=axis,
        name=name,
        summary=summary,
        about=about.strip("\n"),
        source=method.source,
        trains=method.trains,
        package=package_of(axis, name),
        options=options,
    )


def package_of(axis: str, name: str) -> str:
    """Name of the distribution that brings a method, without importing it."""
    if name in _built_in(axis):
        return "sherl-cache"
    distribution = _entry_points(axis)[name].dist
    return "" if distribution is None else distribution.name


def validate_options(
    model: type[AnyModel], options: Mapping[str, Any], *, where: str, owner: str, also: Iterable[str] = ()
) -> AnyModel:
    """A validated `model` from raw options.

    `where` is the recipe key of the section ("fusion", "fusion.encoder"), `owner` what has the options
    ("sherl"), `also` further keys that the section takes, for the message.

    Raises RecipeError that names every wrong key, with the nearest right name for an unknown one.
    """
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        known = [*model.model_fields, *also]
        problems = [_problem(detail, where, owner, known) for detail in error.errors(include_url=False)]
    raise RecipeError("\n".join(problems))


def _problem(detail: Any, where: str, owner: str, known: Sequence[str]) -> str:
    """One line for one of pydantic's error details."""
    key = ".".join([where, *(str(part) for part in detail["loc"])])
    if detail["type"] == "extra_forbidden":
        has = f"it has {', '.join(known)}" if known else "it has no options"
        return f"{key}: unknown option of {owner}{did_you_mean(detail['loc'][-1], known)}; {has}"
    if detail["type"] == "missing":
        return f"{key}: {owner} needs this option"
    message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{key}: {message}, not {detail['input']!r}{meant_choice(detail)}"


def meant_choice(detail: Any) -> str:
    """` (did you mean x?)` for one of pydantic's error details, where the value is none of a few that can be."""
    choices = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    return did_you_mean(detail["input"], choices) if detail["type"] in ("literal_error", "enum") else ""


def _package(axis: str) -> Any:
    if axis not in AXES:
        raise ValueError(f"no axis {axis!r}; there are {', '.join(AXES)}")
    return import_module(f".methods.{axis}", __package__)


def _base(axis: str) -> Any:
    # torch is imported only once a method is wanted
    from .methods import contract

    bases: dict[str, Any] = {
        "fusion": contract.Fusion,
        "tuner": contract.Tuner,
        "head": contract.Head,
        "objective": contract.Objective,
    }
    return bases[axis]


def _built_in(axis: str) -> list[str]:
    modules = pkgutil.iter_modules(_package(axis).__path__)
    return [module.name for module in modules if not module.name.startswith("_") and not module.ispkg]


def _entry_points(axis: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"sherl_cache.{axis}")}


def _is_method(value: Any, base: Any) -> bool:
    return isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)


def _type_name(annotation: Any) -> str:
    """`int | None`, `'mean' | 'cls'`: a type as a person would write it."""
    if get_origin(annotation) is Literal:
        return " | ".join(repr(value) for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(_type_name(part) for part in get_args(annotation))
    if annotation is NoneType:
        return "None"
    return annotation.__name__ if get_origin(annotation) is None else str(annotation)
