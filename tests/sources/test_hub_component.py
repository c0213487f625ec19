"""A single component from the hub, for replace_component: of a pipeline, or of a repository that is nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from test_hub import ROOT, Hub, hub, write_weights  # noqa: F401

CHILD = """
import json, sys
from sdcompress.errors import SourceError
from sdcompress.sources.hub import fetch_component
try:
    folder = fetch_component(*sys.argv[1:])
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    print(json.dumps(files))
except SourceError as error:
    print(json.dumps(str(error)))
"""


def fetched(hub: Hub, hub_id: str, part: str) -> list[str] | str:  # noqa: F811
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    clean |= {"HF_HOME": str(hub.folder.parent / "hf"), "PYTHONPATH": str(ROOT), "NO_PROXY": "*",
              "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.address}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", CHILD, hub_id, part], env=clean, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: list[str] | str = json.loads(done.stdout)
    return answer


def test_a_part_of_a_pipeline(hub: Hub) -> None:  # noqa: F811
    assert fetched(hub, "tester/tiny", "vae") == [
        "LICENSE.md", "model_index.json", "tokenizer/vocab.json", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert not any("text_encoder/model" in path or "whole-model" in path for _, path, _ in hub.requests)


def test_a_repository_of_one_component(hub: Hub) -> None:  # noqa: F811
    (hub.folder / "model_index.json").unlink()
    (hub.folder / "whole-model.safetensors").unlink()
    (hub.folder / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    write_weights(Path(hub.folder / "diffusion_pytorch_model.safetensors"), {"a.weight": (4, 4)})
    found = fetched(hub, "tester/tiny", "vae")
    assert [file for file in found if "/" not in file] == [
        "LICENSE.md", "config.json", "diffusion_pytorch_model.safetensors"
    ]  # fmt: skip
    assert not any(file.endswith(".safetensors") for file in found if "/" in file)


def test_one_that_is_not_there(hub: Hub) -> None:  # noqa: F811
    assert "the hub has no such model" in fetched(hub, "tester/none", "vae")
