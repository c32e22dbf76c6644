"""`builtin/reviews`: labelled English review sentences from a small grammar written for this project.

A sentence is one clause or two. A clause gives an opinion of one side of a film: a word that praises or
blames, which its frame keeps ("is truly sharp", "could hardly be more sharp") or turns round ("is not all that
sharp", "is anything but sharp"). Of two clauses one carries the verdict: the last after "but", the main one
beside "although". So words alone say little about a label, and words in their order decide it. The sentences
are synthetic: a score on them says that a pipeline works, nothing about real reviews.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from typing import Final, TypeVar

from ...storage.errors import DataError
from ...storage.nearest import did_you_mean
from .contract import BATCH_ROWS, BUILTIN, Batch, Request, Source, refuse_validation_file
from .digits import Digits

ROWS: Final = {"train": 4000, "validation": 1000}
LABELS: Final = ("negative", "positive")

_SEED: Final = 1
Item = TypeVar("Item")
_DIGITS: Final = f"{BUILTIN}digits"
_NAMES: Final = (f"{BUILTIN}reviews", _DIGITS)

_PRAISE_WORDS: Final = """
absorbing believable bold brave bright charming clever confident convincing delightful elegant engaging enjoyable
exciting fine fresh funny gentle good graceful great gripping honest imaginative impressive inspired joyful lively
lovely memorable moving original playful poignant polished rewarding satisfying sharp sincere smart strong stylish
subtle tender thoughtful thrilling touching vivid warm witty wonderful
"""
_BLAME_WORDS: Final = """
annoying awful awkward bad bland boring careless cheap clumsy cold confused contrived cynical disappointing dreary
dull empty feeble flat forgettable grating hollow irritating lazy lifeless messy mediocre muddled pointless
pompous poor predictable pretentious ridiculous sentimental shallow silly sloppy sluggish stale stiff tedious
tiresome tired trite ugly uninspired unpleasant weak wooden
"""
_SINGULAR: Final = """
the acting, the story, the script, the pacing, the music, the camera work, the dialogue, the ending, the humour,
the lead actor, the cast, the plot, the direction, the opening scene, the second half, the final act,
the romance, the villain, the soundtrack, the editing, the comedy, the suspense, the drama, the central idea,
the love story, the main character, the mood, the storytelling, the costume design, the supporting cast,
the narration, the lighting, the atmosphere, the first hour, the young heroine, the voice work, the chase scene
"""
_PLURAL: Final = """
the jokes, the performances, the characters, the songs, the action scenes, the special effects, the visuals,
the quiet moments, the lead actors, the twists, the fight scenes, the conversations, the sets, the flashbacks,
the crowd scenes, the love scenes, the minor roles, the closing minutes, the family scenes, the dance numbers
"""
# {} takes an adjective with or without a degree, * a bare one; singular and plural forms are parted by a slash
_KEEPING: Final = """
is/are {}; was/were {}; feels/feel {}; seems/seem {}; looks/look {}; turns/turn out to be {}; remains/remain {};
proves/prove {}; could hardly be more *; could not be more *; never stops/stop being *; never fails/fail to be *;
is/are nothing if not *; is/are never less than *; is/are without doubt {}
"""
_TURNING: Final = """
is/are not {}; was/were not {}; does/do not feel {}; does/do not seem {}; does/do not look {};
never turns/turn out to be {}; never feels/feel {}; hardly seems/seem *; is/are hardly *; is/are never {};
is/are anything but *; is/are far from *; is/are by no means {}; is/are not in the least *; could not be less *;
could hardly be less *; fails/fail to be {}; never manages/manage to be {}; is/are not at all *
"""
_KEEPING_DEGREES: Final = "very; really; truly; quite; rather; somewhat; remarkably; deeply; a little; so; utterly"
_TURNING_DEGREES: Final = "very; really; truly; particularly; especially; all that"
_OPENINGS: Final = """
in the end; to be fair; for once; on a second viewing; in my opinion; by any standard; as a whole; at times;
all things considered; for most viewers; on the big screen; for a first film; as so often
"""
_CLOSINGS: Final = """
from start to finish; this time; throughout; once again; on the whole; most of the time; after all
"""
# "a" is the clause beside the verdict, "b" the verdict
_JOININGS: Final = """
a, but b; a, yet b; a, and yet b; although a, b; b, although a; b, even though a; even though a, b;
while a, b; a, and still b
"""
# shares of sentences and clauses, set so that counting words stays weak; see the tests for by how much
_ONE_CLAUSE: Final = 0.6
_TURNED: Final = 0.16
_WITH_DEGREE: Final = 0.5
_WITH_OPENING: Final = 0.15
_WITH_CLOSING: Final = 0.15


def opens(data: str) -> bool:
    """Whether `data` is one of ours: it starts with `builtin/`."""
    return data.startswith(BUILTIN)


def open_source(request: Request) -> Source:
    """The built-in data set. Raises DataError for an unknown name."""
    refuse_validation_file(request)
    if request.data.partition(":")[0] == _DIGITS:
        return Digits(request.data)
    if request.data not in _NAMES:
        raise DataError(
            f"no built-in data {request.data!r}{did_you_mean(request.data, _NAMES)}; there is {', '.join(_NAMES)}"
        )
    return Reviews()


class Reviews(Source):
    """4,000 training and 1,000 validation sentences, no two alike, half of each positive; always the same."""

    name = _NAMES[0]
    splits = tuple(ROWS)
    task = "reviews"
    synthetic = True

    def columns(self, split: str) -> tuple[str, ...]:
        return ("text", "label")

    def rows(self, split: str) -> int:
        self.require(split)
        return ROWS[split]

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[Batch]:
        self.require(split, columns)
        first = 0 if split == "train" else ROWS["train"]
        rows = _sentences()[first : first + ROWS[split]]
        for start in range(0, len(rows), BATCH_ROWS):
            part = rows[start : start + BATCH_ROWS]
            values: Batch = {"text": [text for text, _ in part], "label": [label for _, label in part]}
            yield {column: values[column] for column in columns}

    def class_names(self, split: str, column: str) -> tuple[str, ...] | None:
        return LABELS if column == "label" else None


@cache
def _sentences() -> tuple[tuple[str, int], ...]:
    """All sentences of all splits with their labels; labels alternate."""
    chance = Random(_SEED)
    found: dict[str, int] = {}
    while len(found) < sum(ROWS.values()):
        label = len(found) % 2
        found.setdefault(_sentence(chance, label), label)
    return tuple(found.items())


def _sentence(chance: Random, label: int) -> str:
    """One sentence whose verdict is `label`."""
    verdict = _clause(chance, label)
    text = verdict
    if not _happens(chance, _ONE_CLAUSE):
        joining = _pick(chance, _JOINING_FORMS)
        other = _clause(chance, 1 - label)
        text = "".join({"a": other, "b": verdict}.get(part, part) for part in joining)
    if _happens(chance, _WITH_OPENING):
        text = f"{_pick(chance, _OPENING_PHRASES)}, {text}"
    if _happens(chance, _WITH_CLOSING):
        text = f"{text} {_pick(chance, _CLOSING_PHRASES)}"
    return f"{text[0].upper()}{text[1:]}."


def _clause(chance: Random, label: int) -> str:
    """One clause whose opinion is `label`: a word of that opinion kept, or one of the other turned round."""
    turned = _happens(chance, _TURNED)
    word = _pick(chance, _PRAISE if label != turned else _BLAME)
    frame = _pick(chance, _TURNING_FRAMES if turned else _KEEPING_FRAMES)
    subjects, number = (_SINGULARS, 0) if _happens(chance, 0.6) else (_PLURALS, 1)
    subject = _pick(chance, subjects)
    degrees = _TURNING_DEGREE_WORDS if turned else _KEEPING_DEGREE_WORDS
    with_degree = f"{_pick(chance, degrees)} {word}" if _happens(chance, _WITH_DEGREE) else word
    words = [form.split("/")[number] if "/" in form else form for form in frame.split()]
    return f"{subject} {' '.join(words)}".replace("{}", with_degree).replace("*", word)


def _pick(chance: Random, items: "Sequence[Item]") -> "Item":
    # `random()` is the one method whose sequence Python promises to keep
    return items[int(chance.random() * len(items))]


def _happens(chance: Random, share: float) -> bool:
    return chance.random() < share


def _phrases(text: str, separator: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(separator) if phrase.strip())


_PRAISE = tuple(_PRAISE_WORDS.split())
_BLAME = tuple(_BLAME_WORDS.split())
_SINGULARS = _phrases(_SINGULAR, ",")
_PLURALS = _phrases(_PLURAL, ",")
_KEEPING_FRAMES = _phrases(_KEEPING, ";")
_TURNING_FRAMES = _phrases(_TURNING, ";")
_KEEPING_DEGREE_WORDS = _phrases(_KEEPING_DEGREES, ";")
_TURNING_DEGREE_WORDS = _phrases(_TURNING_DEGREES, ";")
_OPENING_PHRASES = _phrases(_OPENINGS, ";")
_CLOSING_PHRASES = _phrases(_CLOSINGS, ";")
_JOINING_FORMS = tuple(
    tuple(part for part in re.split(r"\b([ab])\b", form) if part) for form in _phrases(_JOININGS, ";")
)
