"""Which parts of a denoiser to remove for a share of its parameters: those whose absence changes the output least.

`sensitivity/KEY.json` in the cache folder keeps what was measured; KEY is a digest of all that it depends on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sdcompress.errors import Problem, UserError
from sdcompress.files.cache import cache_folder, replacing
from sdcompress.pruning.blocks import block_lists, is_transformer, must_stay
from sdcompress.pruning.stock import is_unet
from sdcompress.pruning.units import Unit, outermost, removable_units
from sdcompress.quant.statistics import Limits
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    from sdcompress.backends.component import MeasuringContext


def least_important(context: MeasuringContext, share: float) -> tuple[str, ...]:
    """Return the names of the units to remove for at least that share of the component's parameters, in its order.

    Raises:
        UserError: so much cannot be removed.
        SourceError: nothing can be measured.
    """
    spec = context.source.components[context.component]
    if not is_unet(spec) and not is_transformer(spec):
        raise UserError(Problem("auto", f"{spec.name} is a {spec.class_name}; parts are measured in denoisers only"))
    units = measured_units(spec)
    most = sum(unit.parameters for unit in units) - sum(unit.parameters for unit in units_to_keep(spec, units, {}))
    if most < share * spec.parameters:
        what = f"{share:.0%} of {spec.name} asked for, and its removable parts are {most / spec.parameters:.0%}"
        raise UserError(Problem("auto", what))
    errors = sensitivities(context, units)
    kept = units_to_keep(spec, units, errors)
    return choose_units(tuple(unit for unit in units if unit not in kept), errors, share * spec.parameters)


def units_to_keep(spec: ComponentSpec, units: tuple[Unit, ...], errors: Mapping[str, float]) -> frozenset[Unit]:
    """Return the block with the largest error of each list of a transformer's blocks, so that no list gets empty."""
    most: set[Unit] = set()
    for blocks, tensors in block_lists(spec).items():
        if not blocks.last_stays:
            most.add(max((unit for unit in units if unit.name in tensors), key=lambda unit: errors.get(unit.name, 0.0)))
    return frozenset(most)


def measured_units(spec: ComponentSpec) -> tuple[Unit, ...]:
    """Return the units to measure: resnets, and transformers, or their blocks where they have several."""
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
    """Return names of units with at least `parameters` weights together, those of least error per weight first."""
    chosen: set[str] = set()
    gone = 0
    for unit in sorted(units, key=lambda unit: (errors[unit.name] / unit.parameters, unit.name)):
        if gone >= parameters:
            break
        chosen.add(unit.name)
        gone += unit.parameters
    return tuple(unit.name for unit in units if unit.name in chosen)


def sensitivities(context: MeasuringContext, units: tuple[Unit, ...]) -> dict[str, float]:
    """Return unit -> mean relative squared error of the output without it, from the cache or measured and cached."""
    from sdcompress.backends.torch.input_statistics import content_key
    from sdcompress.backends.torch.loading import choose_device
    from sdcompress.backends.torch.unit_sensitivity import SAMPLES, measure_units

    names = [unit.name for unit in units]
    source, component, calibration = context.source, context.component, context.calibration
    key = content_key(source, {component: names}, calibration, Limits(rows=SAMPLES), choose_device("auto").type)
    file = cache_folder() / "sensitivity" / f"{key}.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if sorted(kept) == sorted(names):
            return {name: float(kept[name]) for name in names}
    except (OSError, ValueError, TypeError):
        pass  # no file, or a damaged one: the units are measured again
    errors = measure_units(source, component, names, calibration, context.listener)
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(errors, indent=1), encoding="utf-8")
    return errors
