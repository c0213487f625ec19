"""One part of the run, in a process of its own: what it is given, and how it saves what it measured.

    python -m benchmarks.gpu.part FILE WORK DEADLINE

`python -m benchmarks.gpu` calls this. FILE is the part's result file, in which the part's name and the device stand.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.result_file import read_result, write_result

# Part -> the module whose `run` measures it, and what is given to it besides the part.
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tests": ("gpu_tests", ()),
    "sd15": ("steps", ("sd15",)),
    "sdxl": ("steps", ("sdxl",)),
    "sd15-compiled": ("compiled_steps", ("sd15",)),
    "tiny-sd": ("tiny_sd", ()),
    "training": ("training", ()),
    "sdxl-compiled": ("compiled_steps", ("sdxl",)),
}


ORIGINAL = "original"  # the contender that others are compared with


@dataclass
class Part:
    """A running part.

    Args:
        file: its result file.
        work: a folder for what it makes, which the parts share; it is removed at the end.
        deadline: when the process is killed, in seconds since the epoch.
        content: what the result file holds.
    """

    file: Path
    work: Path
    deadline: float
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """The device to measure: `cuda`, `mps` or `cpu`."""
        return str(self.content["device"])

    @property
    def small(self) -> bool:
        """Whether only to show that everything works: tiny shapes and few rounds."""
        return bool(self.content["small"])

    def left_s(self) -> float:
        """Return the seconds until the process is killed."""
        return self.deadline - time.time()

    def save(self, **results: Any) -> None:
        """Add results to those in the file, and write it."""
        self.content["results"].update(results)
        write_result(self.file, self.content)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Save an exception inside as the error of `what` and go on: it costs only what it concerns."""
        try:
            yield
        except Exception:
            self.content["errors"][what] = traceback.format_exc()[-4000:]
            self.save()
            traceback.print_exc()


def describe_libraries() -> dict[str, Any]:
    """Return what the environment of a benchmark says, and the versions of torch's CUDA, cuDNN and Triton."""
    import torch

    from sdcompress.environment import describe_environment, distribution_version

    described = describe_environment()
    more = {name: distribution_version(name) for name in ("triton", "pydantic", "huggingface_hub", "tokenizers")}
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {**described, "versions": {**described["versions"], **more}, "cuda": torch.version.cuda, "cudnn": cudnn}


def main() -> None:
    """Run the part that the result file names."""
    file, work = Path(sys.argv[1]), Path(sys.argv[2])
    part = Part(file, work, float(sys.argv[3]), read_result(file))
    if part.small:  # as on the machine that this is for, which lacks it; importing it is a quarter of a part's time
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    part.content["environment"] = describe_libraries()
    part.save()
    name = part.content["part"]
    module, given = PARTS[name]
    with part.attempt(name):
        importlib.import_module(f"benchmarks.gpu.{module}").run(part, *given)
    part.content["status"] = "failed" if part.content["errors"] else "done"
    part.save()


if __name__ == "__main__":
    main()
