"""A name that is nearly right: every kind of name that a user writes is answered with the nearest one there is."""

import contextlib
import io
from pathlib import Path

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline.cli import main
from sherl_cache.pipeline.cluster.settings import load_cluster
from sherl_cache.storage.errors import RecipeError
from sherl_cache.storage.nearest import did_you_mean, instead, nearest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("near")
    tiny_bert(folder / "model")
    write_csv(folder / "train.csv", 40)
    call("extract", "--model", folder / "model", "--data", folder / "train.csv", "--store", folder / "cache")
    (folder / "runs" / "sherl-0123456789").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("written", "known", "meant"),
    [
        ("trian", ["train", "plan"], "train"),
        ("SHERL", ["last", "sherl"], "sherl"),
        ("batch-examples", ["batch_tokens", "batch_examples"], "batch_examples"),
        ("epochs", ["seed", "train.epochs"], "train.epochs"),
        ("tensor", ["wandb", "tensorboard"], "tensorboard"),
        ("seed", ["data.seed", "extract.seed"], None),  # either may be meant
        ("", ["a"], None),
        ("qqqq", ["train", "plan"], None),
        (3, ["13"], "13"),
    ],
)
def test_the_nearest_name(written: object, known: list[str], meant: str | None) -> None:
    assert nearest(written, known) == meant
    assert did_you_mean(written, known) == ("" if meant is None else f" (did you mean {meant}?)")
    assert instead(written, known, "there are") == (
        f"there are {', '.join(known)}" if meant is None else f"did you mean {meant}?"
    )


EXTRACT = ("--set", "extract.seed=1")
CASES: dict[str, tuple[int, tuple[str, ...], str]] = {
    "command": (2, ("extrakt",), "no command 'extrakt'; did you mean extract?"),
    "command of a group": (2, ("recipe", "shwo"), "no command 'shwo'; did you mean show?"),
    "option": (2, ("train", "--epohcs", "3"), "no option --epohcs; did you mean --epochs?"),
    "option of a group's command": (2, ("recipe", "show", "--confg", "x"), "no option --confg; did you mean --config?"),
    "recipe": (3, ("train", "--config", "sherl-papr"), "did you mean sherl-paper?"),
    "recipe in capitals": (3, ("recipe", "show", "SHERL-paper"), "did you mean sherl-paper?"),
    "section": (3, ("train", "--set", "trian.epochs=3"), "unknown key trian; did you mean train?"),
    "key": (3, ("train", "--set", "train.epohs=3"), "unknown key train.epohs; did you mean train.epochs?"),
    "key without its section": (3, ("train", "--set", "epochs=3"), "unknown key epochs; did you mean train.epochs?"),
    "value of a few": (3, ("train", "--set", "train.schedule=cosin"), "not 'cosin' (did you mean cosine?)"),
    "fusion": (3, ("train", "--set", "fusion.name=shrel"), "no fusion named 'shrel' (did you mean sherl?)"),
    "tuner": (3, ("train", "--set", "tuner.name=Lora"), "no tuner named 'Lora' (did you mean lora?)"),
    "head": (3, ("train", "--set", "head.name=clasifier"), "(did you mean classifier?)"),
    "objective": (3, ("train", "--set", "objective.name=clasification"), "(did you mean classification?)"),
    "option of a method": (3, ("train", "--set", "fusion.reducton=4"), "(did you mean reduction?)"),
    "value of an option": (3, ("train", "--set", "fusion.guide=deepst"), "(did you mean deepest?)"),
    "op of a tuner": (3, ("train", "--set", "tuner={name: lora, ops: [qery]}"), "(did you mean query?)"),
    "stream of a fusion": (3, ("train", "--set", "fusion.taps=encodr:0,1"), "no stream 'encodr'"),
    "method": (2, ("methods", "weigted_sum"), "no method 'weigted_sum' (did you mean weighted_sum?)"),
    "taps": (3, ("extract", *EXTRACT, "--taps", "evry:2"), "(did you mean every?)"),
    "stream": (3, ("extract", *EXTRACT, "--taps", "encdoer:0"), "(did you mean encoder?)"),
    "text column": (3, ("extract", *EXTRACT, "--text-column", "txet"), "no column 'txet' (did you mean text?)"),
    "label column": (3, ("extract", *EXTRACT, "--label-column", "lable"), "(did you mean label?)"),
    "encoding": (3, ("extract", "--encoding", "bfloat61"), "(did you mean bfloat16?)"),
    "encoding's addition": (3, ("extract", "--encoding", "bfloat16+zst:3"), "(did you mean zstd?)"),
    "precision": (3, ("extract", "--precision", "flaot32"), "(did you mean float32?)"),
    "splits": (3, ("extract", *EXTRACT, "--splits", "oficial"), "(did you mean official?)"),
    "augment": (3, ("extract", "--augment", "filp"), "(did you mean flip?)"),
    "task": (3, ("extract", "--task", "sst"), "no task 'sst' (did you mean sst2?)"),
    "built-in data": (3, ("extract", "--data", "builtin/reviws"), "(did you mean builtin/reviews?)"),
    "built-in model": (3, ("extract", "--model", "builtin/minlm"), "(did you mean builtin/minilm?)"),
    "data file": (3, ("extract", "--data", "{place}/trian.csv"), "(did you mean train.csv?)"),
    "model folder": (3, ("extract", "--model", "{place}/modle"), "modle (did you mean {place}/model?)"),
    "store": (4, ("info", "--store", "{place}/cahce"), "so no store (did you mean {place}/cache?)"),
    "run": (2, ("eval", "--run", "{place}/runs/sherl-0123456788"), "(did you mean {place}/runs/sherl-0123456789?)"),
    "device": (2, ("extract", *EXTRACT, "--device", "cdua"), "(did you mean cuda?)"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_meant_is_named(name: str, place: Path, tmp_path: Path) -> None:
    code, words, saying = CASES[name]
    words = tuple(word.format(place=place) if "{place}" in word else word for word in words)
    if words[0] == "extract":
        asked = {"--model": place / "model", "--data": place / "train.csv", "--store": tmp_path / "new"}
        words += tuple(str(each) for key, value in asked.items() if key not in words for each in (key, value))
    if words[0] == "train":
        words += ("--store", str(place / "cache"), "--run", str(tmp_path / "run"))
    assert saying.format(place=place) in call(*words, code=code)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "run").exists()


def test_a_cluster_is_named_too() -> None:
    with pytest.raises(RecipeError, match=r"did you mean slurm\?"):
        load_cluster("slrum")


def test_a_wrong_call_says_where_help_is() -> None:
    assert call("eval", code=2) == "error: missing option '--run'\nsherl-cache eval --help shows how it is called\n"
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main(["recipe"]) == 2
    assert said.getvalue().startswith("Usage: sherl-cache recipe")
