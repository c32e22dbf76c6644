"""Canaries: secrets in the environment and in URLs are in no file that a command leaves and in nothing that it says."""

from pathlib import Path

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline.cli import main
from sherl_cache.pipeline.redaction import without_secrets
from sherl_cache.pipeline.run import Run
from sherl_cache.storage import Store

MARK = "cAnArY"
ENVIRONMENT = {
    "HF_TOKEN": f"hf_{MARK}Hub",
    "AWS_ACCESS_KEY_ID": f"AKIA{MARK}",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}/Aws+Secret",
    "WANDB_API_KEY": f"0123456789abcdef{MARK}0123456789",
    "HTTPS_PROXY": f"http://proxy:{MARK}@127.0.0.1:9",
    "https_proxy": f"http://proxy:{MARK}@127.0.0.1:9",
}
HTTPS = f"https://user:{MARK}@127.0.0.1:9/name"
SIGNED = f"https://127.0.0.1:9/rows.csv?X-Amz-Signature={MARK}"
S3 = f"s3://user:{MARK}@bucket/prefix"
SLASHED = f"s3://user:pass/{MARK}@bucket/prefix"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("secrets")
    tiny_bert(root / "model")
    write_csv(root / "train.csv", 32)
    return root


def assert_no_canary(said: str, folder: Path) -> None:
    assert MARK not in said, said
    for path in folder.rglob("*"):
        assert MARK not in path.name
        assert not path.is_file() or MARK.encode() not in path.read_bytes(), path


@pytest.mark.usefixtures("secrets")
def test_no_command_tells_a_secret_of_the_environment(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--model", place / "model", "--data", place / "train.csv", "--splits", "holdout:8", "--store", "cache")
    run = ("--run", "run")
    commands = [
        ("plan", *data),
        ("extract", *data),
        ("train", "--store", "cache", *run, "--epochs", 2, "--report-to", "tensorboard"),
        ("sweep", "probe", "--store", "cache", "--epochs", 1),
        ("eval", *run),
        ("predict", *run, "the film is fine"),
        ("analyze", "--store", "cache"),
        ("report", *run, "--store", "cache", "--texts"),
        ("report", "--store", "cache", "--out", "store.html"),
        ("export", *run, "--out", "exported"),
        ("sbatch", *data, "--out", "jobs"),
        ("info", "--store", "cache"),
        ("verify", "--store", "cache"),
        ("explain-stale", *data),
        ("advise", *data, "--epochs", 2, "--seconds", 0.1),
        ("bench", "--store", "cache", "--ways", "stage-two", "--steps", 2, "--rounds", 1),
    ]
    for words in commands:
        assert main([*map(str, words)]) == 0, capfd.readouterr().err
        if words[0] in ("export", "info", "train"):
            assert main([*map(str, words), "--json"]) == 0, capfd.readouterr().err
    notebook = Store.open("cache")._repr_html_() + Run.open(tmp_path / "run")._repr_html_()
    told = capfd.readouterr()
    assert_no_canary(told.out + told.err + notebook, tmp_path)
    assert {"report.html", "store.html", "exported", "jobs", "bench"} <= {path.name for path in tmp_path.iterdir()}


REFUSED = [
    ("plan", "--model", HTTPS, "--data", "train.csv"),
    ("plan", "--model", "model", "--data", HTTPS),
    ("extract", "--model", "model", "--data", SIGNED),
    ("extract", "--model", "model", "--data", "train.csv", "--validation", SIGNED),
    ("extract", "--model", "model", "--data", "train.csv", "--store", S3),
    ("extract", "--model", "model", "--set", f"extract.data={HTTPS}"),
    ("extract", "--model", "model", "--data", "train.csv", "--scheduler", f"tcp://user:{MARK}@127.0.0.1:9"),
    ("sbatch", "--model", HTTPS, "--data", "train.csv"),
    ("fetch", "--model", HTTPS, "--data", "train.csv"),
    ("train", "--store", S3),
    ("train", "--store", SLASHED),
    ("train", "--store", "cache", "--config", HTTPS),
    ("info", "--store", f"{S3}?X-Amz-Signature={MARK}"),
    ("verify", "--store", HTTPS),
    ("copy", "cache", S3),
    ("report", "--store", S3),
    ("report", "--run", HTTPS),
    ("export", "--run", HTTPS),
    ("eval", "--run", HTTPS),
    ("predict", "--run", HTTPS, "a text"),
    ("explain-stale", "--model", HTTPS, "--data", "train.csv"),
    ("advise", "--model", HTTPS, "--data", "train.csv"),
    ("advise", "--model", "model", "--data", "train.csv", "--store", S3),
    ("bench", "--model", HTTPS, "--data", "train.csv"),
    ("bench", "--store", S3),
]


@pytest.mark.usefixtures("secrets")
def test_no_refusal_repeats_a_secret_of_a_url(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also with -v, whose traceback holds what was asked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(place / "model")
    (tmp_path / "train.csv").symlink_to(place / "train.csv")
    for words in REFUSED:
        for more in ((), ("-v",)):
            assert main([*words, *more]) in (2, 3, 4, 75), words
            told = capfd.readouterr()
            assert MARK not in told.out + told.err, (words, told.err)
            assert "internal error" not in told.err, (words, told.err)
    assert_no_canary("", tmp_path)


def test_places_stay_readable_without_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-long-secret")
    for text, shown in {
        "see s3://bucket/prefix, or s3://other/x.": "see s3://bucket/prefix, or s3://other/x.",
        "at https://user:p@ss@host/x it": "at https://***@host/x it",
        "did you mean s3://bucket/x?)": "did you mean s3://bucket/x?)",
        "'https://host/x?sig=abc'": "'https://host/x?***'",
        "mail me@example.org": "mail me@example.org",
        "401 for a-long-secret": "401 for ***",
    }.items():
        assert without_secrets(text) == shown


def test_a_name_of_model_or_data_that_is_an_address_is_refused(place: Path) -> None:
    said = call("plan", "--model", place / "model", "--data", "https://example.org/rows.csv", code=3)
    assert "extract.data: " in said
    assert "a name of the hub, a file or a folder" in said
