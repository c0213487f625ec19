"""Which parts of a UNet to leave out for a share of its parameters: those whose absence was measured to matter least.

`sensitivity/KEY.json` in the cache folder keeps the measurement, KEY being a digest of all that it depends on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sdcompress.cache import cache_folder, replacing
from sdcompress.errors import UserError
from sdcompress.pruning.stock import is_unet
from sdcompress.pruning.units import Unit, outermost, removable_units
from sdcompress.quant.statistics import Limits
from sdcompress.spec import ComponentSpec

if TYPE_CHECKING:
    from sdcompress.steps import Origin


def least_important(origin: Origin, share: float) -> tuple[str, ...]:
    """Names of the units to remove for at least that share of the component's parameters, in the UNet's order.

    UserError where so much cannot be removed; SourceError where nothing can be measured.
    """
    spec = origin.source.components[origin.component]
    if not is_unet(spec):
        raise UserError(f"auto: {spec.name} is a {spec.class_name}; parts are measured in a UNet2DConditionModel only")
    units = measured_units(spec)
    most = sum(unit.parameters for unit in units)
    if most < share * spec.parameters:
        raise UserError(
            f"auto: {share:.0%} of {spec.name} asked for, and its removable parts are {most / spec.parameters:.0%}"
        )
    return choose_units(units, sensitivities(origin, units), share * spec.parameters)


def measured_units(spec: ComponentSpec) -> tuple[Unit, ...]:
    """The units whose absence is measured: resnets, and transformers, or their blocks where they have several."""
    units = removable_units(spec)
    blocks: dict[str, list[Unit]] = {}
    for unit in units:
        if ".transformer_blocks." in unit.name:
            blocks.setdefault(unit.name.split(".transformer_blocks.")[0], []).append(unit)
    measured: list[Unit] = []
    for unit in outermost(units):
        inner = blocks.get(unit.name, [])
        measured += inner if len(inner) > 1 else [unit]
    return tuple(measured)


def choose_units(units: tuple[Unit, ...], errors: Mapping[str, float], parameters: float) -> tuple[str, ...]:
    """Names of units with at least so many parameters together, those first whose error for each of theirs is least."""
    chosen: set[str] = set()
    gone = 0
    for unit in sorted(units, key=lambda unit: (errors[unit.name] / unit.parameters, unit.name)):
        if gone >= parameters:
            break
        chosen.add(unit.name)
        gone += unit.parameters
    return tuple(unit.name for unit in units if unit.name in chosen)


def sensitivities(origin: Origin, units: tuple[Unit, ...]) -> dict[str, float]:
    """Unit -> mean relative squared error of the UNet's output without it, from the cache or measured and put there."""
    from sdcompress.backends.torch.loading import choose_device
    from sdcompress.backends.torch.unit_sensitivity import SAMPLES, measure_units
    from sdcompress.statistics import content_key

    names = [unit.name for unit in units]
    wanted = {origin.component: names}
    key = content_key(origin.source, wanted, origin.calibration, Limits(rows=SAMPLES), choose_device("auto").type)
    file = cache_folder() / "sensitivity" / f"{key}.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if sorted(kept) == sorted(names):
            return {name: float(kept[name]) for name in names}
    except (OSError, ValueError, TypeError):
        pass  # none yet, or a damaged one: it is measured anew
    errors = measure_units(origin.source, origin.component, names, origin.calibration, origin.advance)
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(errors, indent=1), encoding="utf-8")
    return errors
