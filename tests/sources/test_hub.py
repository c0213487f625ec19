"""Pipelines on the hub, against an HTTP server on this machine in place of the hub."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sdcompress.files.safetensors_file import DTYPE_BYTES, StreamWriter

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"  # of the revision v1
HANG_S = 6.0

# What a child process runs: HF_ENDPOINT is read once, when huggingface_hub is imported.
CHILD = """
import json, sys, time
from sdcompress.sources import hub, hub_requests
from sdcompress.sources.opening import open_source, with_weights
from sdcompress.errors import SourceError

def listed(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

action, model, variant, settings = json.loads(sys.argv[1])
options = settings.pop("options", {})
for name, value in settings.items():
    setattr(hub_requests, name, value)
started = time.perf_counter()
try:
    if action == "open":
        source = open_source(model, variant, **options)
        result = {"kind": source.kind, "hub_id": source.hub_id, "pipeline": source.pipeline_class, "components": {
            name: {"parameters": spec.parameters, "config": dict(spec.config),
                   "tensors": {tensor: [list(t.shape), t.dtype] for tensor, t in spec.tensors.items()}}
            for name, spec in source.components.items()}}
    elif action == "complete":
        source = with_weights(open_source(model, variant, **options))
        result = {"name": source.name, "folder": source.path.name, "options": dict(source.options),
                  "parameters": source.components["unet"].parameters}
    elif action == "file":
        result = {"content": hub_requests.fetch_file(model, "tokenizer/vocab.json").decode()}
    elif action == "component":
        result = {"files": listed(hub.fetch_component(model, "vae"))}
    else:
        result = {"files": listed(hub.fetch_weights(model, variant, **options))}
except SourceError as error:
    result = {"error": str(error), "exit_code": error.exit_code}
result["seconds"] = time.perf_counter() - started
print(json.dumps(result))
"""


@dataclass
class Hub:
    """The server: its address, the folder it serves as `tester/tiny`, and what it was asked for."""

    address: str
    folder: Path
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    bytes_sent: int = 0

    def ask(self, action: str, model: str, variant: str | None = None, **settings: Any) -> dict[str, Any]:
        env = {"HF_ENDPOINT": self.address, **settings.pop("env", {})}
        return run_child([action, model, variant, settings], self.folder.parent, env)


OFFLINE = {"env": {"HF_HUB_OFFLINE": "1"}}


def run_child(arguments: list[Any], folder: Path, env: dict[str, str]) -> dict[str, Any]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    clean |= {"HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT), "NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1", **env}
    command = [sys.executable, "-c", CHILD, json.dumps(arguments)]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def write_weights(file: Path, tensors: dict[str, tuple[int, ...]], dtype: str = "F16") -> None:
    with StreamWriter(file, {name: (dtype, shape) for name, shape in tensors.items()}, {"format": "pt"}) as writer:
        for name, shape in tensors.items():
            writer.write(name, bytes(DTYPE_BYTES[dtype] * math.prod(shape)))


def write_unet(folder: Path, rows: tuple[int, int]) -> None:
    for i, (name, count) in enumerate(zip("ab", rows, strict=True), start=1):
        file = folder / "unet" / f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        write_weights(file, {f"{name}.weight": (count, 1000)})


def write_pipeline(folder: Path) -> None:
    """A diffusers repository with variants, shards, pickles, an old VAE, a nested file and foreign weights."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
    }
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        (folder / part).mkdir(parents=True)
        if part != "tokenizer":
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            (folder / part / name).write_text(json.dumps({"_class_name": index[part][1]}))
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "LICENSE.md").write_text("free")
    (folder / "whole-model.safetensors").write_bytes(bytes(50_000))
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    text = {"fc.weight": (1000, 1000), "fc.bias": (1000,), "text_model.embeddings.position_ids": (1, 77)}
    write_weights(folder / "text_encoder" / "model.safetensors", text, "F32")
    write_weights(folder / "text_encoder" / "model.fp16.safetensors", text, "F16")
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(bytes(30_000))
    write_unet(folder, (700, 300))
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {}}')
    (folder / "unet" / "model.onnx_data").write_bytes(bytes(30_000))
    old = {"encoder.mid_block.attentions.0.query.weight": (8, 8)}
    write_weights(folder / "vae" / "diffusion_pytorch_model.safetensors", old)


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((path, self.headers.get("Range")))
            model = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            revision = re.search(r"/(?:revision|resolve|tree)/([^/]+)", path)
            old = bool(revision) and revision[1] in ("v1", OLD_COMMIT)
            folder = hub.folder.with_name("served-v1") if old else hub.folder
            commit = OLD_COMMIT if old else COMMIT
            if model == "tester/hangs":
                time.sleep(HANG_S)
            refusals = {"tester/gated": (403, "GatedRepo"), "tester/broken": (500, None)}
            if model == "tester/portal":
                self.send(200, b"<html>please log in</html>")
            elif model != "tester/tiny":
                status, code = refusals.get(model, (404, "RepoNotFound"))
                self.send(status, b"{}", {"X-Error-Code": code} if code else {})
            elif revision and revision[1] not in ("main", "v1", COMMIT, OLD_COMMIT):
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith("/api/models/"):
                files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
                content: Any = {"id": model, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
                if "/tree/" in path:
                    content = [{"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                               for name, file in files.items()]  # fmt: skip
                self.send(200, json.dumps(content).encode())
            else:
                self.send_file(folder / re.split("/resolve/[^/]+/", path)[1], commit)

        def send_file(self, file: Path, commit: str) -> None:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            headers = {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if not span:
                self.send(200, content, headers)
                return
            last = min(int(span[2]) if span[2] else len(content) - 1, len(content) - 1)
            headers["Content-Range"] = f"bytes {span[1]}-{last}/{len(content)}"
            self.send(206, content[int(span[1]) : last + 1], headers)

        def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)
                hub.bytes_sent += len(content)

        def log_message(self, *_: object) -> None:
            """Print nothing: tests read `hub.requests`."""

    return Handler


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    served = Hub("", tmp_path / "served")
    write_pipeline(served.folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(served))
    server.daemon_threads = True
    served.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("first_bytes", [1000, 40])  # the second holds no header: a second request has to
def test_headers_are_read_and_weights_are_not(hub: Hub, first_bytes: int) -> None:
    found = hub.ask("open", "tester/tiny", FIRST_HEADER_BYTES=first_bytes)
    assert (found["kind"], found["hub_id"], found["pipeline"]) == ("hub", "tester/tiny", "StableDiffusionPipeline")
    assert sorted(found["components"]) == ["text_encoder", "unet", "vae"]
    unet = found["components"]["unet"]
    assert unet["tensors"] == {"a.weight": [[700, 1000], "F16"], "b.weight": [[300, 1000], "F16"]}
    assert unet["config"] == {"_class_name": "UNet2DConditionModel"}
    text = found["components"]["text_encoder"]
    assert text["tensors"]["fc.weight"] == [[1000, 1000], "F32"]
    assert text["parameters"] == 1_001_000  # position_ids is a buffer
    assert "encoder.mid_block.attentions.0.to_q.weight" in found["components"]["vae"]["tensors"]
    weights = [asked for path, asked in hub.requests if path.endswith((".safetensors", ".bin"))]
    assert len(weights) == (4 if first_bytes == 1000 else 8)
    assert all(weights)  # a Range in every one
    assert hub.bytes_sent < 20_000


def test_downloads_what_is_needed_and_works_offline_then(hub: Hub) -> None:
    opened = hub.ask("open", "tester/tiny", "fp16")
    assert opened["components"]["text_encoder"]["tensors"]["fc.weight"] == [[1000, 1000], "F16"]
    fetched = hub.ask("fetch", "tester/tiny", "fp16")
    assert fetched["files"] == [
        "LICENSE.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    hub.requests.clear()
    assert hub.ask("open", "tester/tiny", "fp16", **OFFLINE)["components"] == opened["components"]
    assert hub.ask("fetch", "tester/tiny", "fp16", **OFFLINE)["files"] == fetched["files"]
    assert hub.requests == []


def test_a_revision_is_read_downloaded_and_found_again_offline(hub: Hub) -> None:
    old = hub.folder.with_name("served-v1")
    shutil.copytree(hub.folder, old)
    write_unet(old, (40, 2))
    for model, options in (
        ("tester/tiny@v1", {}),
        ("tester/tiny", {"revision": "v1"}),
        (f"tester/tiny@{OLD_COMMIT}", {}),
    ):
        assert hub.ask("open", model, options=options)["components"]["unet"]["parameters"] == 42_000
    completed = hub.ask("complete", "tester/tiny@v1")
    assert completed == completed | {"name": "tester/tiny@v1", "folder": OLD_COMMIT, "parameters": 42_000}
    assert completed["options"]["revision"] == "v1"
    hub.requests.clear()
    assert hub.ask("open", "tester/tiny@v1", **OFFLINE)["components"]["unet"]["parameters"] == 42_000
    assert hub.requests == []
    assert "tester/tiny@v2: is not in the local cache" in hub.ask("open", "tester/tiny@v2", **OFFLINE)["error"]
    assert hub.ask("complete", "tester/tiny")["folder"] == COMMIT
    assert "has no revision v9; name a branch, a tag" in hub.ask("open", "tester/tiny@v9")["error"]
    twice = hub.ask("open", "tester/tiny@v1", options={"revision": "v2"})
    assert "has the revision v1 already; leave out --revision v2" in twice["error"]


def test_one_file_is_fetched_alone(hub: Hub) -> None:
    assert hub.ask("file", "tester/tiny")["content"] == "{}"
    asked = [path for path, _ in hub.requests if path.startswith("/tester/")]  # huggingface_hub may ask for more
    assert asked == ["/tester/tiny/resolve/main/tokenizer/vocab.json"]
    hub.requests.clear()
    assert "forbids asking" in hub.ask("file", "tester/tiny", **OFFLINE)["error"]
    assert hub.requests == []


def test_one_component_of_a_pipeline(hub: Hub) -> None:
    assert hub.ask("component", "tester/tiny")["files"] == [
        "LICENSE.md", "model_index.json", "tokenizer/vocab.json", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert not any("text_encoder/model" in path or "whole-model" in path for path, _ in hub.requests)


def test_a_repository_of_one_component(hub: Hub) -> None:
    (hub.folder / "model_index.json").unlink()
    (hub.folder / "whole-model.safetensors").unlink()
    (hub.folder / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    write_weights(hub.folder / "diffusion_pytorch_model.safetensors", {"a.weight": (4, 4)})
    found = hub.ask("component", "tester/tiny")["files"]
    own = [file for file in found if "/" not in file]
    assert own == ["LICENSE.md", "config.json", "diffusion_pytorch_model.safetensors"]
    assert not any(file.endswith(".safetensors") for file in found if "/" in file)


@pytest.mark.parametrize(
    ("action", "model", "says", "settings"),
    [
        ("open", "tester/unknown", "no such model", {}),
        ("fetch", "tester/unknown", "no such model", {}),
        ("component", "tester/unknown", "no such model", {}),
        ("open", "tester/gated", "accept its licence", {}),
        ("fetch", "tester/broken", "answered 500", {}),
        ("open", "tester/portal", "something other than the hub answered", {}),
        ("open", "tester/-.bad--name", "is no hub id", {}),
        ("open", "tester/-.bad--name", "is no hub id", OFFLINE),
        ("open", "tester/hangs", "cannot reach the hub", {"TIMEOUT_S": 0.5}),
        ("open", "tester/tiny", "is not in the local cache", OFFLINE),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, action: str, model: str, says: str, settings: dict[str, Any]) -> None:
    refused = hub.ask(action, model, **settings)
    assert refused["exit_code"] == 2
    assert refused["error"].startswith(f"{model}: ")
    assert says in refused["error"]
    assert "local folder" in refused["error"]
    assert refused["seconds"] < HANG_S


@pytest.mark.parametrize("action", ["open", "fetch"])
def test_no_connection(tmp_path: Path, action: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"  # bound, but nothing listens: refused at once
        refused = run_child([action, "tester/tiny", None, {}], tmp_path, {"HF_ENDPOINT": address})
    assert refused["exit_code"] == 2
    assert refused["error"].startswith("tester/tiny: cannot reach the hub")
    assert "HF_HUB_OFFLINE=1" in refused["error"]
    assert refused["seconds"] < 5


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model_index.json", None, "is no diffusers pipeline"),
        ("unet/diffusion_pytorch_model-00001-of-00002.safetensors", None, "1 of 2 shards"),
        ("vae/config.json", None, "vae has weights but no config.json"),
        ("vae/config.json", b"[]", "tester/tiny/vae/config.json: is not a JSON object"),
        ("vae/diffusion_pytorch_model.safetensors", b"version https://git-lfs.github.com", "so it is no safetensors"),
    ],
)
def test_incomplete_and_damaged_repositories(hub: Hub, file: str, content: bytes | None, says: str) -> None:
    if content is None:
        (hub.folder / file).unlink()
    else:
        (hub.folder / file).write_bytes(content)
    assert says in hub.ask("open", "tester/tiny")["error"]


def test_pickles_are_downloaded_when_they_are_allowed(hub: Hub) -> None:
    import torch

    for file in (hub.folder / "text_encoder").glob("*.safetensors"):
        file.unlink()
    torch.save({"fc.weight": torch.ones(3, 5)}, hub.folder / "text_encoder" / "pytorch_model.bin")
    error = hub.ask("open", "tester/tiny")["error"]
    assert error.startswith("tester/tiny: text_encoder: has only pickled weights (pytorch_model.bin)")
    found = hub.ask("open", "tester/tiny", options={"allow_pickle": True})
    assert found["components"]["text_encoder"]["tensors"] == {"fc.weight": [[3, 5], "F32"]}
