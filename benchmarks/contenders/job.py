"""What a contender's processes are told: which model, which component, where the files are, how many threads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

MADE = "made.json"
# The first output of each exported component, by optimum's names; torch's modules give it first as well.
OUTPUTS = {
    "unet": "out_sample",
    "transformer": "out_sample",
    "vae_decoder": "sample",
    "vae_encoder": "latent_parameters",
}
TEXT_OUTPUTS = ("text_embeds", "last_hidden_state")


@dataclass(frozen=True)
class Job:
    """One contender's task; `work` is the folder of this model, in which each contender has a folder.

    source: the model as `open_source` takes it, a built-in name too; model: its folder.
    """

    contender: str
    source: str
    model: str
    component: str
    work: str
    threads: int

    @property
    def inputs(self) -> Path:
        """The folder of the component's recorded inputs."""
        return Path(self.work) / "inputs" / self.component

    def folder(self, contender: str | None = None) -> Path:
        """The folder of one contender's files for all components; this job's contender unless another is named."""
        return Path(self.work) / (contender or self.contender)

    def part(self, contender: str | None = None) -> Path:
        """The folder of one contender's files for this job's component."""
        return self.folder(contender) / self.component

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        return Job(**json.loads(text))
