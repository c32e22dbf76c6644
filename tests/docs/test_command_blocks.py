"""Every block of README and docs/ that a reader would run, run: page by page, in order, in an empty folder, offline.

```bash and ```python blocks run as they are written, ```console shows commands that do not (a session with its
output, or a clone of the repository), ```text and others are no commands. A line `<!-- needs: network -->` (or gpu,
cluster) right before a block says that it cannot run here.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from doc_pages import ROOT, Block, name, pages, split
from warm_commands import Warm

RUN = ("bash", "python")
KNOWN = (*RUN, "console", "csv", "json", "text", "toml", "yaml")
NEEDS = {"network": 13, "gpu": 0, "cluster": 5}
"""How many blocks are not run, by what they need: one more is a decision."""
CONSOLE = 3
"""How many blocks show commands without running them."""
ELSEWHERE = {"docs/use-storage-alone.md": "tests/storage/test_docs_storage.py"}
"""Pages that another test runs."""
INSTALLED = Path(sys.executable).parent
COLD = (sys.executable, str(ROOT / "tests" / "run_page.py"))
COMMAND = re.compile(r"^(?:sherl-cache|pip|python3?|make|export|torchrun|srun|sbatch|bash|aws|git|cd) ", re.MULTILINE)


def runnable(page: Path) -> list[Block]:
    return [block for block in split(page)[0] if block.language in RUN and block.needs is None]


PAGES = [page for page in pages() if runnable(page) and name(page) not in ELSEWHERE]


def follow(
    label: str, blocks: list[Block], folder: Path, first: Path, runner: Sequence[str | Path] = COLD
) -> subprocess.CompletedProcess[str]:
    """Run blocks in an empty folder with the commands of `first` before all others on PATH; stderr is in stdout."""
    work, written = folder / "work", folder / "blocks.json"
    work.mkdir()
    written.write_text(json.dumps([vars(block) for block in blocks]), "utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "SHERL", "SLURM"))}
    environment |= {"PATH": os.pathsep.join([str(first), str(INSTALLED), os.environ["PATH"]])}
    environment |= {"HOME": str(folder), "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*runner, label, str(written)],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_of_a_page_runs(page: Path, warm: Warm, tmp_path: Path) -> None:
    done = follow(name(page), runnable(page), tmp_path, warm.bin, [warm.bin / "run-page"])
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_of_a_page_runs_with_the_installed_command(page: Path, tmp_path: Path) -> None:
    done = follow(name(page), runnable(page), tmp_path, INSTALLED)
    assert done.returncode == 0, done.stdout


def test_a_block_is_run_or_says_why_not() -> None:
    marks: Counter[str] = Counter()
    shown = 0
    for page in pages():
        blocks, prose = split(page)
        for block in blocks:
            place = f"{name(page)}:{block.line}"
            assert block.language in KNOWN, f"{place}: a fence says its language, one of {', '.join(KNOWN)}"
            if block.needs is not None:
                assert block.needs in NEEDS, f"{place}: needs {block.needs}, which is none of {', '.join(NEEDS)}"
                assert block.language in RUN, f"{place}: only a block that would be run says what it needs"
                marks[block.needs] += 1
            if block.language == "console":
                assert block.text.startswith("$ "), f"{place}: a session begins with `$ ` and a command"
                shown += 1
            elif block.language not in RUN:
                assert not COMMAND.search(block.text), f"{place}: a command is in a bash block, which is run"
        fences = {block.line for block in blocks}
        for number, line in prose:
            assert not line.lstrip().startswith("<!-- needs") or number + 1 in fences, (
                f"{name(page)}:{number}: no block follows"
            )
    assert marks == Counter(NEEDS)
    assert shown == CONSOLE
    assert all(runnable(page) for page in pages() if name(page) in ELSEWHERE)


def test_a_block_that_fails_is_named_with_what_was_said(warm: Warm, tmp_path: Path) -> None:
    good = Block("python", 3, None, "x = 1\n")
    cases = {
        "pipe": (Block("bash", 7, None, "false | true\necho not reached\n"), "exit status 1"),
        "command": (Block("bash", 7, None, "sherl-cache info --store none\necho not reached\n"), "none: there is no"),
        "python": (
            Block("python", 7, None, "assert x == 1\nassert x == 2\nprint('not reached')\n"),
            "line 9, in <module>",
        ),
    }
    for folder, (bad, said) in cases.items():
        (tmp_path / folder).mkdir()
        done = follow("a/page.md", [good, bad], tmp_path / folder, warm.bin, [warm.bin / "run-page"])
        assert done.returncode == 1
        assert "a/page.md:7: this block failed" in done.stdout
        assert said in done.stdout
        assert "not reached\n" not in done.stdout


def test_blocks_of_a_page_are_one_script_and_one_terminal(warm: Warm, tmp_path: Path) -> None:
    blocks = [
        Block("bash", 1, None, "export WORD=left\nPRIVATE=gone\nmkdir inside\ncd inside\n"),
        Block("python", 2, None, "import os\nname = os.environ['WORD']\n"),
        Block("bash", 3, None, '[ -z "${PRIVATE-}" ]\necho "$WORD" > word\n'),
        Block("python", 4, None, "assert open('word').read() == f'{name}\\n'\nassert os.getcwd().endswith('inside')\n"),
    ]
    done = follow("a/page.md", blocks, tmp_path, warm.bin, [warm.bin / "run-page"])
    assert done.returncode == 0, done.stdout


def test_a_warm_command_is_the_installed_one(warm: Warm, tmp_path: Path) -> None:
    """What it prints, where it looks, what it reads and how it ends."""
    (tmp_path / "recipe.yaml").write_text("train: {epochs: 7}\n")
    for words in (["recipe", "show", "recipe.yaml"], ["info", "--store", "none"], ["nothing"], ["predict"]):
        said = [
            subprocess.run(
                [folder / "sherl-cache", *words],
                cwd=tmp_path,
                input="a film",
                capture_output=True,
                text=True,
                check=False,
            )
            for folder in (warm.bin, INSTALLED)
        ]
        assert vars(said[0]) | {"args": None} == vars(said[1]) | {"args": None}
        assert said[0].stdout or said[0].stderr
