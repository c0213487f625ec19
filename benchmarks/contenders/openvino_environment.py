"""The virtual environment in which OpenVINO and NNCF live, apart from the project's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "openvino-requirements.txt"
READY = ".ready"


def make_environment(folder: Path) -> str:
    """The path of its Python, the environment made first unless these very requirements are in it already."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    ready = folder / READY
    if not (ready.is_file() and ready.read_text(encoding="utf-8") == wanted):
        print(f"making {folder} (OpenVINO and NNCF, about 1 GB)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, stdout=sys.stderr)
        install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)]
        subprocess.run(install, check=True, stdout=sys.stderr)
        ready.write_text(wanted, encoding="utf-8")
    return str(python)


def openvino_versions(python: str) -> dict[str, str]:
    """Distribution -> version of what the contenders use there."""
    script = (
        "import json; from importlib.metadata import version\n"
        "print(json.dumps({name: version(name) for name in ('openvino', 'nncf', 'onnx', 'numpy')}))"
    )
    answer = subprocess.run([python, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(answer.stdout))
