"""Virtual environments for what is measured beside sdcompress and must not be installed with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

READY = ".ready"


def make_environment(folder: Path, requirements: Path, what: str) -> str:
    """The path of its Python, the environment made first unless these very requirements are in it already.

    requirements: a file that pins every distribution; what: said to whoever waits, such as `torchao, about 1 GB`.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = requirements.read_text(encoding="utf-8")
    ready = folder / READY
    if not (ready.is_file() and ready.read_text(encoding="utf-8") == wanted):
        print(f"making {folder} ({what})", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, stdout=sys.stderr)
        install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)]
        subprocess.run(install, check=True, stdout=sys.stderr)
        ready.write_text(wanted, encoding="utf-8")
    return str(python)


def versions_in(python: str, distributions: Sequence[str]) -> dict[str, str]:
    """Distribution -> version of those named, as that Python has them."""
    script = (
        "import json, sys; from importlib.metadata import version\n"
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    command = [python, "-c", script, *distributions]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
