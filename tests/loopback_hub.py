"""A hub on 127.0.0.1: serves folders as model and data set repositories, with what `huggingface_hub` asks for.

    with LoopbackHub() as hub:
        hub.add_model("google-t5/t5-base", folder, alias="t5-base")
        hub.add_dataset("nyu-mll/glue", folder)
        subprocess.run(command, env=hub.environment(tmp_path / "home"))

Only what a client really calls is here: repository facts, file trees, and files with HEAD, ranges and commit headers.
An alias answers 307 with the full name, as the hub does for old short names.
"""

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet

GLUE_TASK = "sst2"
_PRAISED = ("a fine film", "the cast is good", "sweet and funny", "we laughed all the way", "a strong script")
_BLAMED = ("a dull film", "the cast is weak", "slow and cold", "we slept all the way", "a poor script")


class LoopbackHub:
    """The server as a context manager; `requests` collects "METHOD path" of all calls."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Path] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.requests: list[str] = []
        hub = self

        class BoundHandler(_Handler):
            pass

        BoundHandler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def endpoint(self) -> str:
        """Value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add_model(self, name: str, folder: Path, alias: str | None = None) -> None:
        """Serve a folder as a model repository, and under a short name by a redirect."""
        self._add("models", name, folder, alias)

    def add_dataset(self, name: str, folder: Path, alias: str | None = None) -> None:
        """Serve a folder as a data set repository."""
        self._add("datasets", name, folder, alias)

    def environment(self, home: Path, **extra: str) -> dict[str, str]:
        """Environment of a process that knows this hub alone, with its cache in `home`."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_")) and not key.lower().endswith("_proxy")
        }
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            **extra,
        }

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _add(self, kind: str, name: str, folder: Path, alias: str | None) -> None:
        self.repositories[kind, name] = folder
        if alias is not None:
            self.aliases[kind, alias] = name


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._refuse(404, "EntryNotFound")

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: `LoopbackHub.requests` has it all."""

    def _answer(self, body: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        api = parts[:1] == ["api"]
        parts = parts[1:] if api else parts
        kind = parts[0] if parts[:1] in (["models"], ["datasets"]) else "models"
        parts = parts[1:] if parts[:1] == [kind] else parts
        for length in (2, 1):
            name, rest = "/".join(parts[:length]), parts[length:]
            if (kind, name) in self.hub.aliases:
                return self._redirect(name, self.hub.aliases[kind, name])
            if (kind, name) in self.hub.repositories:
                folder = self.hub.repositories[kind, name]
                if api:
                    return self._facts(name, folder, rest, parse_qs(url.query), body)
                return self._file(folder, rest, body)
        return self._refuse(404, "RepoNotFound")

    def _facts(self, name: str, folder: Path, rest: list[str], query: dict[str, list[str]], body: bool) -> None:
        commit = _commit(folder)
        if rest[:1] == ["tree"]:
            known, below = rest[1] in ("main", commit), "/".join(rest[2:])
            if not known or not (folder / below).is_dir():
                return self._refuse(404, "EntryNotFound" if known else "RevisionNotFound")
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._json([_entry(folder, path) for path in _paths(folder / below, deep)], body)
        if rest[:1] == ["revision"] and rest[1] not in ("main", commit):
            return self._refuse(404, "RevisionNotFound")
        if rest and rest[0] != "revision":
            return self._refuse(404, "EntryNotFound")
        siblings = [{"rfilename": str(path.relative_to(folder))} for path in _paths(folder, True) if path.is_file()]
        facts = {"_id": commit[:24], "id": name, "sha": commit, "private": False, "gated": False, "disabled": False}
        return self._json({**facts, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}, body)

    def _file(self, folder: Path, rest: list[str], body: bool) -> None:
        commit = _commit(folder)
        if len(rest) < 3 or rest[0] != "resolve":
            return self._refuse(404, "EntryNotFound")
        if rest[1] not in ("main", commit):
            return self._refuse(404, "RevisionNotFound")
        path = folder.joinpath(*rest[2:])
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            return self._refuse(404, "EntryNotFound", commit)
        data = path.read_bytes()
        status, first, last = 200, 0, len(data) - 1
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first = int(start) if start else len(data) - int(end)
            last = min(int(end), last) if start and end else last
            status = 206
        part = data[first : last + 1]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(status, part, body, headers)

    def _redirect(self, alias: str, name: str) -> None:
        self._send(307, b"", False, {"Location": self.path.replace(alias, name, 1)})

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        if commit is not None:
            headers["X-Repo-Commit"] = commit
        self._send(status, json.dumps({"error": code}).encode(), self.command != "HEAD", headers)

    def _json(self, value: Any, body: bool) -> None:
        self._send(200, json.dumps(value).encode(), body, {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def write_glue_dataset(folder: Path, train: int = 40, validation: int = 12, test: int = 6) -> Path:
    """A data set repository shaped as GLUE's on the hub: configuration sst2, parquet, test labels -1."""
    (folder / GLUE_TASK).mkdir(parents=True)
    names = {"names": {"0": "negative", "1": "positive"}}
    features = [
        {"name": "sentence", "dtype": "string"},
        {"name": "label", "dtype": {"class_label": names}},
        {"name": "idx", "dtype": "int32"},
    ]
    sizes = {"train": train, "validation": validation, "test": test}
    for split, size in sizes.items():
        labels = [row % 2 for row in range(size)]
        table = pa.table(
            {
                "sentence": [_sentence(split, row) for row in range(size)],
                "label": pa.array([-1] * size if split == "test" else labels, pa.int64()),
                "idx": pa.array(range(size), pa.int32()),
            }
        )
        pa.parquet.write_table(table, folder / GLUE_TASK / f"{split}-00000-of-00001.parquet")
    header = {
        "configs": [
            {
                "config_name": GLUE_TASK,
                "data_files": [{"split": split, "path": f"{GLUE_TASK}/{split}-*"} for split in sizes],
            }
        ],
        "dataset_info": [
            {
                "config_name": GLUE_TASK,
                "features": features,
                "splits": [{"name": split, "num_examples": size} for split, size in sizes.items()],
            }
        ],
    }
    # JSON is YAML, which the client reads between the dashes
    (folder / "README.md").write_text(f"---\n{json.dumps(header)}\n---\n# Sentences for tests\n", "utf-8")
    return folder


def _sentence(split: str, row: int) -> str:
    phrase = (_PRAISED if row % 2 else _BLAMED)[row // 2 % len(_PRAISED)]
    return f"{phrase} number {row} of {split} "


def _commit(folder: Path) -> str:
    """A commit's name: the content decides it."""
    digest = hashlib.sha1()
    for path in _paths(folder, True):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _paths(folder: Path, deep: bool) -> list[Path]:
    return sorted(folder.rglob("*") if deep else folder.iterdir())


def _entry(root: Path, path: Path) -> dict[str, Any]:
    name = str(path.relative_to(root))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    data = path.read_bytes()
    return {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}


def write_picture_dataset(folder: Path, train: int = 40, test: int = 10) -> Path:
    """A data set repository of pictures inside parquet: columns `img` and `label`, splits train and test."""
    from tiny_pictures import picture, png

    folder.mkdir(parents=True)
    names = {"names": {"0": "dark", "1": "bright"}}
    features = [{"name": "img", "dtype": "image"}, {"name": "label", "dtype": {"class_label": names}}]
    sizes = {"train": train, "test": test}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for seed, (split, size) in enumerate(sizes.items()):
        rows = [picture(1000 * seed + row).point(lambda v, row=row: v // 2 + 127 * (row % 2)) for row in range(size)]
        values = [{"bytes": png(image), "path": f"{row}.png"} for row, image in enumerate(rows)]
        labels = pa.array([row % 2 for row in range(size)], pa.int64())
        table = pa.table({"img": pa.array(values, kind), "label": labels})
        pa.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    header = {
        "configs": [{"config_name": "default", "data_files": [{"split": name, "path": f"{name}-*"} for name in sizes]}],
        "dataset_info": [
            {
                "config_name": "default",
                "features": features,
                "splits": [{"name": name, "num_examples": size} for name, size in sizes.items()],
            }
        ],
    }
    (folder / "README.md").write_text(f"---\n{json.dumps(header)}\n---\n# Pictures for tests\n", "utf-8")
    return folder
