"""Fetch the two emoji packages from the npm registry and unpack what tiny-sd needs.

python -m benchmarks.tiny_sd.download
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import tarfile
import urllib.request
from pathlib import Path

from benchmarks.tiny_sd.data import DEFAULT_WORK

PACKAGES = {
    "google": (
        "https://registry.npmjs.org/emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        ("package/img/google/64/", "package/emoji.json", "package/LICENSE", "package/README.md"),
    ),
    "fluent": (
        "https://registry.npmjs.org/@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ("package/",),
    ),
}


def fetch(url: str, integrity: str, target: Path) -> None:
    """Download `url` to `target` unless it is there already, and check its sha512."""
    if not target.exists():
        print(f"download {url}", file=sys.stderr)
        partial = target.with_suffix(".partial")
        with urllib.request.urlopen(url) as response, partial.open("wb") as file:
            while chunk := response.read(1 << 20):
                file.write(chunk)
        partial.rename(target)
    digest = "sha512-" + base64.b64encode(hashlib.sha512(target.read_bytes()).digest()).decode()
    if digest != integrity:
        raise SystemExit(f"{target}: sha512 is {digest}, expected {integrity}; delete the file and try again")


def unpack(archive: Path, folder: Path, wanted: tuple[str, ...]) -> int:
    """Unpack the members of an npm archive whose names start with one of `wanted`; their number."""
    count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(wanted):
                member.name = member.name.removeprefix("package/")
                tar.extract(member, folder, filter="data")
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder for downloads and checkpoints")
    raw = parser.parse_args().work / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    summary = {}
    for name, (url, integrity, wanted) in PACKAGES.items():
        archive = raw / url.rsplit("/", 1)[1]
        fetch(url, integrity, archive)
        summary[name] = unpack(archive, raw / name, wanted)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
