"""What `sdcompress doctor` finds out about a machine, as typed records.

Sizes are in bytes. None means unknown. `problem` says why something does not work or could not be found out.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    """A record that does not change. What nobody set is left out of the JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        """Return the record, ready for JSON, without the fields that were not set."""
        return self.model_dump(exclude_unset=True)


class CpuFindings(Finding):
    """The processor and the memory that this process may use; `instructions` says which sets the processor has."""

    name: str
    machine: str
    cores: int | None
    memory_bytes: int
    memory_available_bytes: int
    instructions: dict[str, bool | None]


class Gpu(Finding):
    """A GPU that torch can use."""

    kind: Literal["cuda", "rocm", "mps", "xpu"]
    name: str
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    compute_capability: str | None = None
    problem: str | None = None


class LibraryFindings(Finding):
    """The installed version of a library (None: not installed), and why it does not work."""

    version: str | None
    problem: str | None = None

    @property
    def installed(self) -> bool:
        return bool(self.version or self.problem)


class TorchFindings(LibraryFindings):
    """torch: the GPUs that it can use, and remarks on GPUs that it cannot use. `gpus` is None if it did not answer."""

    gpus: tuple[Gpu, ...] | None = None
    remarks: tuple[str, ...] = ()


class OnnxRuntimeFindings(LibraryFindings):
    """ONNX Runtime: its installed builds, and for each execution provider None or why it does not work."""

    builds: tuple[str, ...] = ()
    providers: dict[str, str | None] = {}


class FormatTrial(Finding):
    """Whether a format of bitsandbytes works on a device."""

    device: str
    format: str
    problem: str | None


class BitsandbytesFindings(LibraryFindings):
    """bitsandbytes: a trial of each format on each device."""

    trials: tuple[FormatTrial, ...] = ()


class Disk(Finding):
    """The free space on the disk of a folder."""

    what: str
    path: str
    free_bytes: int | None
    problem: str | None


class Findings(Finding):
    """All findings about a machine; `versions` are those of the installed libraries."""

    cpu: CpuFindings
    torch: TorchFindings
    bitsandbytes: BitsandbytesFindings
    onnxruntime: OnnxRuntimeFindings
    versions: dict[str, str]
    disk: tuple[Disk, ...]
