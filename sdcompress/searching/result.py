"""What a search found: scores, predictions, trials and finalists, as `search.json` holds them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdcompress.errors import UserError
from sdcompress.files.cache import replacing

FILE_NAME = "search.json"
SCHEMA = 1


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerScores(Part):
    """One layer's candidates.

    Args:
        labels: of their formats, or float16.
        weight_bytes: of the weight in each.
        damages: mean squared change of the picture by each, pictures being from 0 to 1; None where no picture
            depends on the layer.
    """

    component: str
    layer: str
    kind: str
    parameters: int
    labels: tuple[str, ...]
    weight_bytes: tuple[int, ...]
    damages: tuple[float, ...] | None


class Scores(Part):
    """All that another budget is solved from without running the model.

    Args:
        fixed_bytes: of everything but the layers' weights.
        sensitivity: how damages were made: `gradients` of pictures, or errors of `weights` alone.
        prompts: prompts whose pictures were differentiated.
    """

    fixed_bytes: int
    layers: tuple[LayerScores, ...]
    sensitivity: Literal["gradients", "weights"]
    prompts: int


class Trial(Part):
    """Pictures drawn with an allocation in memory.

    Args:
        predicted: mean squared change, as the scores predict it.
        measured: mean squared change of each picture.
    """

    name: str
    size_bytes: int
    predicted: float
    measured: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the measured changes."""
        return sum(self.measured) / len(self.measured)


class Finalist(Part):
    """A recipe that was carried out and evaluated beside the original."""

    name: str
    size_bytes: int
    psnr_db: float | None
    interval_95: tuple[float, float] | None
    meets: bool
    chosen: bool = False


class ShippedRecipe(Part):
    """A recipe that comes with sdcompress, as the scores predict it.

    Args:
        damages: component -> mean squared change of the picture by its layers, uncorrected.
    """

    name: str
    size_bytes: int
    damages: dict[str, float]


class SearchResult(Part):
    """A search.

    Args:
        model: name or path of the original.
        original_bytes: its weights.
        limits: the target as the user wrote it.
        evaluation: prompts and sampler of the finalists, where they are not the model's own.
        corrections: component, or component:label -> factor by which measured damage exceeds the predicted.
        size_bytes: of the chosen recipe.
        predicted: damage of the chosen recipe, corrected.
        gap: relative distance to the solver's bound.
        shipped: the recipes that come with sdcompress.
        allocation: component:layer -> label of the chosen recipe.
        seconds: phase -> how long it took.
    """

    schema_version: int = SCHEMA
    sdcompress: str
    model: str
    source_options: dict[str, Any] = {}
    original_bytes: int
    limits: dict[str, str]
    space: dict[str, Any]
    calibration: dict[str, Any]
    evaluation: dict[str, Any] = {}
    scores: Scores
    corrections: dict[str, float] = {}
    curve: tuple[tuple[int, float], ...] = ()
    trials: tuple[Trial, ...] = ()
    finalists: tuple[Finalist, ...] = ()
    shipped: tuple[ShippedRecipe, ...] = ()
    allocation: dict[str, str]
    size_bytes: int
    predicted: float
    gap: float
    seconds: dict[str, float] = Field({})
    environment: dict[str, Any] = {}

    @property
    def met(self) -> bool:
        """Whether a measured finalist meets the target; true where none was measured."""
        return not self.finalists or any(each.chosen and each.meets for each in self.finalists)

    def save(self, folder: Path) -> None:
        """Write search.json; it appears when it is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE_NAME) as unfinished:
            unfinished.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_result(folder: Path) -> SearchResult:
    """Return the search in a folder. UserError where there is none, or another version wrote it."""
    file = folder / FILE_NAME
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(value, dict) and value.get("schema_version") != SCHEMA:
            raise UserError(f"{file}: has schema {value.get('schema_version')}, this sdcompress reads {SCHEMA}")
        return SearchResult.model_validate(value)
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            raise UserError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        raise UserError(f"{file}: cannot be read ({error}); name the --out folder of a search") from None


def psnr_db(damage: float) -> float:
    """Return the PSNR of a mean squared change of pictures from 0 to 1.

    Examples:
        >>> psnr_db(1e-4)
        40.0
    """
    return math.inf if damage <= 0 else -10 * math.log10(damage)
