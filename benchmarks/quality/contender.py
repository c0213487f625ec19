"""What a contender is: one way of storing a pipeline's weights, applied to some of its components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Components whose bytes count. A safety checker draws nothing, and most pipelines have none.
COUNTED = ("text_encoder", "unet", "vae")

# Scope -> what is quantized.
SCOPES = {
    "unet": "UNet alone",
    "all": "all components",
    "rest8": "all, text encoder and VAE in 8 bits",
}
PEERS, OURS, ORIGINAL = "peers", "sdcompress", "original"


@dataclass(frozen=True)
class Contender:
    """`options` are the library's (a peer's) or the quantize step's (ours); `family` is its line in the plot."""

    name: str
    label: str
    owner: str
    family: str
    bits: int
    scope: str = "unet"
    library: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name under which its results are kept: `sdnq-uint4@unet`."""
        return f"{self.name}@{self.scope}"

    @property
    def components(self) -> tuple[str, ...]:
        """The components that get `options`; in scope `rest8` the others get the library's 8 bits."""
        return COUNTED if self.scope == "all" else ("unet",)
