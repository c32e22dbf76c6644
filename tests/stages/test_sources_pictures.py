"""Sources of pictures: folders of classes, data sets of the library `datasets`, the digits of scikit-learn."""

from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny_pictures import picture, png, write_class_folders

from sherl_cache.stages.pictures import decode
from sherl_cache.stages.sources import open_source
from sherl_cache.stages.sources.contract import Picture
from sherl_cache.stages.sources.hub import DatasetsSource
from sherl_cache.stages.splits import split_rules
from sherl_cache.stages.tasks import task_for
from sherl_cache.storage.errors import DataError


def rows(source, split: str) -> list[tuple[Picture, object]]:
    found = []
    for batch in source.batches(split, ["image", "label"]):
        found += zip(batch["image"], batch["label"], strict=True)
    return found


def names(source, split: str) -> list[str]:
    return ["/".join(Path(picture.name).parts[-2:]) for picture, _ in rows(source, split)]


def test_classes_of_a_folder_take_turns(tmp_path: Path) -> None:
    source = open_source(str(write_class_folders(tmp_path / "set", {"dog": 3, "ant": 1, "cat": 2})))
    expected = ["ant/000.png", "cat/000.png", "dog/000.png", "cat/001.png", "dog/001.png", "dog/002.png"]
    assert names(source, "train") == expected
    assert [label for _, label in rows(source, "train")] == [name.split("/")[0] for name in expected]
    assert source.class_names("train", "label") == ("ant", "cat", "dog")
    assert source.rows("train") == 6
    task = task_for(None, source, pictures=True)
    assert (task.columns, task.labels, task.kind) == (("image",), ("ant", "cat", "dog"), "classification")


def test_other_files_and_hidden_folders_are_left_out(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "set", {"a": 1, "b": 1, ".thumbnails": 2})
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "readme.txt").write_text("x")
    (root / "b" / "more").mkdir()
    (root / "b" / "more" / "1.JPG").write_bytes(png(picture(0), "JPEG"))
    assert names(open_source(str(root)), "train") == ["a/000.png", "b/000.png", "more/1.JPG"]


@pytest.mark.parametrize("name", ["validation", "val", "test"])
def test_split_folders_are_scored(tmp_path: Path, name: str) -> None:
    write_class_folders(tmp_path / "train", {"a": 2, "b": 2})
    write_class_folders(tmp_path / name, {"b": 1})
    source = open_source(str(tmp_path))
    task = task_for(None, source, pictures=True)
    view = split_rules(source, task)
    assert view.splits == ("train", "validation")
    assert names(view, "validation") == ["b/000.png"]
    held = split_rules(source, task, "holdout:1")
    assert {split: held.rows(split) for split in held.splits} == {"train": 3, "validation": 1, "test": 1}


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    source = open_source(str(write_class_folders(tmp_path, {"car": 1, "train": 1})))
    assert source.splits == ("train",)
    assert source.class_names("train", "label") == ("car", "train")


def test_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "one", {"a": 1, "b": 1})
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"the class 'empty' has no picture"):
        open_source(str(root))
    write_class_folders(tmp_path / "two" / "train", {"a": 1, "b": 1})
    write_class_folders(tmp_path / "two" / "validation", {"c": 1})
    with pytest.raises(DataError, match=r"validation/c: a class of split 'validation' that the split 'train' lacks"):
        open_source(str(tmp_path / "two"))
    (tmp_path / "text").mkdir()
    with pytest.raises(DataError, match="pictures lie in one folder a class"):
        open_source(str(tmp_path / "text"))


@pytest.mark.parametrize("make", ["folder", "digits", "saved"])
def test_rows_taken_by_number_equal_those_read_in_order(tmp_path: Path, make: str) -> None:
    data = {
        "folder": lambda: str(write_class_folders(tmp_path / "set", {"a": 9, "b": 4})),
        "digits": lambda: "builtin/digits",
        "saved": lambda: saved(tmp_path / "saved"),
    }[make]()
    source = open_source(data)
    view = split_rules(source, task_for(None, source, pictures=True), "holdout:3", limit=8)
    for split in view.splits:
        read = rows(view, split)
        numbers = list(zip(range(len(read)), view.row_numbers(split), strict=False))
        some = [numbers[place] for place in (len(numbers) - 1, 0, len(numbers) // 2, 0)]
        taken = view.take(split, "image", [number for _, number in some])
        assert taken == [read[place][0] for place, _ in some]
        assert view.take(split, "label", [number for _, number in some]) == [read[place][1] for place, _ in some]


def saved(folder: Path) -> str:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    bytes_of = [png(picture(number)) for number in range(20)]
    table = {"image": [{"bytes": data, "path": None} for data in bytes_of], "label": [n % 2 for n in range(20)]}
    train = datasets.Dataset.from_dict(table, features=features)
    datasets.DatasetDict({"train": train, "test": train.select(range(5))}).save_to_disk(str(folder))
    return str(folder)


def test_pictures_of_a_data_set_are_its_own_bytes_and_test_is_scored(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "saved"))
    assert source.picture_columns("train") == ("image",)
    assert [shown.read() for shown, _ in rows(source, "train")] == [png(picture(number)) for number in range(20)]
    task = task_for(None, source, pictures=True)
    assert (task.labels, task.numbered) == (("no", "yes"), True)
    assert split_rules(source, task).splits == ("train", "validation")


def test_a_data_set_of_files_reads_the_files(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(png(picture(3)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = {"image": [{"bytes": None, "path": str(path)}, None], "label": ["a", "b"]}
    source = DatasetsSource("set", {"train": datasets.Dataset.from_dict(table, features=features)}, None)
    (first, _), (second, _) = rows(source, "train")
    assert (first.data, second) == (path, None)
    assert "one.png" in first.name


def test_digits_are_those_of_scikit_learn() -> None:
    """Oracle: scikit-learn's own arrays; each digit is in one split, and its grey is its level of sixteen."""
    source, digits = open_source("builtin/digits"), load_digits()
    assert {split: source.rows(split) for split in source.splits} == {"train": 1438, "validation": 359}
    seen = {}
    for split in source.splits:
        for shown, label in rows(source, split):
            number = int(shown.name.rsplit(" ", 1)[1])
            seen[number] = np.asarray(decode(shown, shown.read()))
            assert label == str(digits.target[number])
    assert len(seen) == 1797
    for number, pixels in seen.items():
        np.testing.assert_array_equal(pixels[..., 1], np.round(digits.images[number] * 255 / 16))
    counts = np.bincount([int(label) for _, label in rows(source, "validation")], minlength=10)
    assert counts.min() >= 25


def test_picture_tasks_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = open_source(str(write_class_folders(tmp_path / "set", {"a": 1, "b": 1})))
    with pytest.raises(DataError, match="task 'sst2' reads text"):
        task_for("sst2", source, pictures=True)
    with pytest.raises(DataError, match="name one of image with --text-column"):
        task_for(None, source, ["label"], pictures=True)
    with pytest.raises(DataError, match=r"no column of split 'train' holds pictures.*text, label"):
        task_for(None, open_source("builtin/reviews"), pictures=True)


def test_decoded_bytes_of_a_folder_are_the_files(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "set", {"a": 2, "b": 2})
    for shown, _ in rows(open_source(str(root)), "train"):
        pixels = np.asarray(Image.open(BytesIO(Path(shown.name).read_bytes())))
        np.testing.assert_array_equal(np.asarray(decode(shown, shown.read())), pixels)


def test_some_classes_of_the_digits_are_the_same_pictures_in_the_same_splits() -> None:
    whole, part = open_source("builtin/digits"), open_source("builtin/digits:5-9")
    assert task_for(None, part, pictures=True).labels == ("5", "6", "7", "8", "9")
    for split in whole.splits:
        expected = [(shown.read(), label) for shown, label in rows(whole, split) if label in "56789"]
        assert [(shown.read(), label) for shown, label in rows(part, split)] == expected
    for wrong in ("builtin/digits:", "builtin/digits:9-5", "builtin/digits:5", "builtin/digits:0-10"):
        with pytest.raises(DataError, match="give two digits with a dash between"):
            open_source(wrong)
