"""Which parts of a denoiser to leave out for a share of its parameters: those whose absence matters least, as measured.

`sensitivity/KEY.json` in the cache folder keeps the measurement, KEY being a digest of all that it depends on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sdcompress.errors import UserError
from sdcompress.files.cache import cache_folder, replacing
from sdcompress.pruning.blocks import block_lists, is_transformer, must_stay
from sdcompress.pruning.stock import is_unet
from sdcompress.pruning.units import Unit, outermost, removable_units
from sdcompress.quant.statistics import Limits
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    from sdcompress.planning.steps import Origin


def least_important(origin: Origin, share: float) -> tuple[str, ...]:
    """Names of the units to remove for at least that share of the component's parameters, in its order.

    UserError where so much cannot be removed; SourceError where nothing can be measured.
    """
    spec = origin.source.components[origin.component]
    if not is_unet(spec) and not is_transformer(spec):
        raise UserError(f"auto: {spec.name} is a {spec.class_name}; parts are measured in denoisers only")
    units = measured_units(spec)
    most = sum(unit.parameters for unit in units) - sum(unit.parameters for unit in spared(spec, units, {}))
    if most < share * spec.parameters:
        raise UserError(
            f"auto: {share:.0%} of {spec.name} asked for, and its removable parts are {most / spec.parameters:.0%}"
        )
    errors = sensitivities(origin, units)
    kept = spared(spec, units, errors)
    return choose_units(tuple(unit for unit in units if unit not in kept), errors, share * spec.parameters)


def spared(spec: ComponentSpec, units: tuple[Unit, ...], errors: Mapping[str, float]) -> frozenset[Unit]:
    """The unit with the largest error of each of a transformer's lists of blocks that all could go otherwise."""
    most: set[Unit] = set()
    for blocks, tensors in block_lists(spec).items():
        if not blocks.last_stays:
            most.add(max((unit for unit in units if unit.name in tensors), key=lambda unit: errors.get(unit.name, 0.0)))
    return frozenset(most)


def measured_units(spec: ComponentSpec) -> tuple[Unit, ...]:
    """The units whose absence is measured: resnets, and transformers, or their blocks where they have several."""
    units = tuple(unit for unit in removable_units(spec) if unit.name not in must_stay(spec))
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
    """Unit -> mean relative squared error of the output without it, from the cache or measured and put there."""
    from sdcompress.backends.torch.input_statistics import content_key
    from sdcompress.backends.torch.loading import choose_device
    from sdcompress.backends.torch.unit_sensitivity import SAMPLES, measure_units

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
