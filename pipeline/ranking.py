"""Pictures and texts ranked against each other by a run that was trained on pictures with captions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..stages.pair_inputs import PairInputs
from ..stages.retrieval import embedded, nearest
from ..stages.sources import open_source
from ..stages.sources.contract import CAPTION_FILES, PICTURE_SUFFIXES, Picture
from ..storage import commit
from ..storage.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from ..stages.answer import Answerer
    from ..stages.sources import Source

PictureFile = str | Path | bytes
"""A picture by its file, or the bytes of one."""
_CAPTIONS = ("caption", "captions", "text", "sentence")


@dataclass(frozen=True)
class Ranking:
    """What is likest to a query: names of pictures, or texts, the likest first, with the products of their vectors with the
    query's, -1 to 1."""

    query: str
    nearest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures and texts, each once, in the order in which they came."""

    pictures: tuple[Picture, ...] = ()
    texts: tuple[str, ...] = ()

    def __add__(self, other: Gallery) -> Gallery:
        pictures: dict[bytes | Path, Picture] = {}
        for picture in (*self.pictures, *other.pictures):
            pictures.setdefault(picture.data, picture)
        return Gallery(tuple(pictures.values()), tuple(dict.fromkeys((*self.texts, *other.texts))))


def picture_of(given: PictureFile, number: int = 0) -> Picture:
    """A picture that a user gives; number: among others, for its name where it is bytes."""
    if isinstance(given, bytes):
        return Picture(f"picture {number}", given)
    return Picture(str(given), Path(given).expanduser())


def gallery_of_words(words: Iterable[str]) -> Gallery:
    """Arguments of a command: what ends as the name of a picture does is one, all else is a text."""
    pictures, texts = [], []
    for word in words:
        if Path(word).suffix.lower() in PICTURE_SUFFIXES:
            pictures.append(picture_of(word))
        else:
            texts.append(word)
    return Gallery() + Gallery(tuple(pictures), tuple(texts))


def gallery_of(place: Path, columns: Sequence[str]) -> Gallery:
    """All pictures and captions of a folder or file, of every split; columns: of the run's own data, pictures first.

    A folder that holds pictures and no table of captions is taken whole. Raises DataError where there is neither.
    """
    folder = place.expanduser()
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        if files and not any((folder / name).is_file() for name in CAPTION_FILES):
            return Gallery(tuple(picture_of(path) for path in files))
    source = open_source(str(place))
    found = Gallery()
    for split in source.splits:
        found += Gallery(tuple(_pictures(source, split)), tuple(_captions(source, split, columns[1])))
    if not found.pictures and not found.texts:
        raise DataError(
            f"{place} has neither pictures nor a column of texts ({', '.join(dict.fromkeys((columns[1], *_CAPTIONS)))})"
        )
    return found


def rankings_of(
    answerer: Answerer, words: Sequence[str], data: Path | None, batch_examples: int, top: int, vectors: Path | None
) -> list[dict[str, Any]]:
    """What `predict` says of such a run: the rankings of pictures and texts that `words` name, or of all of `data`, as JSON.
    vectors: file for what was compared.
    """
    asked = gallery_of_words(words)
    gallery = asked + (Gallery() if data is None else gallery_of(data, answerer.task.columns))
    rankings, found = rank(answerer, asked if words else gallery, gallery, top, batch_examples)
    if vectors is not None:
        save_vectors(vectors, gallery, found)
    return [
        {"query": item.query, "nearest": [{"item": name, "similarity": value} for name, value in item.nearest]}
        for item in rankings
    ]


def rank(
    answerer: Answerer, queries: Gallery, gallery: Gallery, top: int, batch_examples: int
) -> tuple[list[Ranking], dict[str, Tensor]]:
    """Each picture of `queries` with the likest texts of the gallery, and each text with the likest pictures; and the vectors
    of all pictures [A, P] and texts [B, P] of the gallery, which holds the queries.

    Raises UsageError where a query has nothing to be compared with.
    """
    assert isinstance(answerer.inputs, PairInputs)
    for asked, others, what, wanted in (
        (queries.pictures, gallery.texts, "picture", "texts"),
        (queries.texts, gallery.pictures, "text", "pictures"),
    ):
        if asked and not others:
            raise UsageError(
                f"a {what} is ranked against {wanted}, and none were given; name some, or a folder with --data"
            )
    pictures, texts = embedded(
        answerer.live, answerer.inputs, answerer.task, gallery.pictures, gallery.texts, batch_examples
    )
    names = [picture.name for picture in gallery.pictures]
    place = {picture.data: number for number, picture in enumerate(gallery.pictures)}
    told = {text: number for number, text in enumerate(gallery.texts)}
    shown = pictures[[place[picture.data] for picture in queries.pictures]]
    said = texts[[told[text] for text in queries.texts]]
    found = [
        Ranking(picture.name, tuple((gallery.texts[number], value) for number, value in likest))
        for picture, likest in zip(queries.pictures, nearest(shown, texts, top) if len(shown) else [], strict=True)
    ]
    found += [
        Ranking(text, tuple((names[number], value) for number, value in likest))
        for text, likest in zip(queries.texts, nearest(said, pictures, top) if len(said) else [], strict=True)
    ]
    return found, {"pictures": pictures, "texts": texts}


def save_vectors(path: Path, gallery: Gallery, vectors: Mapping[str, Tensor]) -> None:
    """A safetensors file of `pictures` [A, P] and `texts` [B, P], with what each row is in its metadata, as JSON."""
    from safetensors.torch import save

    names = {"pictures": [picture.name for picture in gallery.pictures], "texts": list(gallery.texts)}
    metadata = {side: json.dumps(of_side, ensure_ascii=False) for side, of_side in names.items()}
    commit.replace(path, save({side: tensor.contiguous() for side, tensor in vectors.items()}, metadata=metadata))


def _pictures(source: Source, split: str) -> Iterator[Picture]:
    columns = source.picture_columns(split)[:1]
    for batch in source.batches(split, columns) if columns else ():
        yield from (picture for picture in batch[columns[0]] if picture is not None)


def _captions(source: Source, split: str, own: str) -> Iterator[str]:
    present = source.columns(split)
    column = next((name for name in (own, *_CAPTIONS) if name in present), None)
    if column is None:
        return
    for batch in source.batches(split, [column]):
        for value in batch[column]:
            yield from map(str, value if isinstance(value, list) else [] if value is None else [value])
