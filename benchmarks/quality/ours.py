"""sdcompress's own contenders and the recipe of each: formats, rounding methods and corrections from 8 to 2 bits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from benchmarks.quality.contender import COUNTED, OURS, Contender

EVERY_SCOPE = ("unet", "all", "rest8")
LOW_BITS = (6, 5, 4, 3, 2)
VERY_LOW_BITS = (4, 3, 2)
EIGHT_BITS = {"format": "int8"}  # what text encoder and VAE get in scope `rest8`
CALIBRATION = {"prompt_count": 8, "num_inference_steps": 20}
# Every layer, in groups of 64 input channels: scales of 8 bits take an eighth of a bit a weight, zero points as well.
GROUPED = {"group_size": 64, "scale_bits": 8, "keep_sensitive": False}
GPTQ = {**GROUPED, "rounding": "gptq", "bias_correction": True}
# First, last and time layers: what the shipped recipes give 8 bits.
FEW = ("conv_in", "conv_out", "time_embedding", "*.time_emb_proj")
SENSITIVE = (*FEW, "*.conv_shortcut", "*.proj_in", "*.proj_out")
SHIPPED = ("int8", "nf4", "nf4-conv", "mixed", "int4", "int4-gptq", "int3-gptq")

# Options of a contender that are no parameters of its quantize step.
OVERRIDES = "unet_overrides"  # layers of the UNet that get int8
SMOOTH = "smooth"  # a smooth step first


def list_ours() -> tuple[Contender, ...]:
    """Every contender of ours in every scope it is measured in."""
    return (*_shipped(), *_eight_bits(), *_methods(), *_variants())


def recipe_of(contender: Contender) -> str:
    """The contender's recipe as YAML; of a shipped one its text as it is now."""
    if "recipe" in contender.options:
        from sdcompress.planning.recipe import find_recipe

        return find_recipe(str(contender.options["recipe"])).read_text(encoding="utf-8")
    cast = {"cast": {"dtype": "float16"}}
    components: dict[str, list[dict[str, Any]]] = {}
    for name in COUNTED:
        if name in contender.components:
            components[name] = [cast, *_steps(contender.options, name)]
        elif contender.scope == "rest8":
            components[name] = [cast, {"quantize": EIGHT_BITS}]
    components["*"] = [cast]
    recipe: dict[str, Any] = {"schema_version": 1, "description": contender.key, "components": components}
    if contender.options.get("rounding") in ("gptq", "weighted-search") or contender.options.get(SMOOTH):
        recipe["calibration"] = CALIBRATION
    return yaml.safe_dump(recipe, sort_keys=False)


def why_not_here(contender: Contender, model: str) -> str | None:
    """The first of what this version of sdcompress has against the contender's recipe, or None."""
    from sdcompress.errors import UserError
    from sdcompress.planning.plan import make_plan
    from sdcompress.planning.recipe import parse_recipe
    from sdcompress.sources.opening import open_source

    try:
        make_plan(parse_recipe(recipe_of(contender), contender.key), open_source(model))
    except UserError as error:
        return str(error).splitlines()[0]
    return None


def _steps(options: Mapping[str, Any], component: str) -> list[dict[str, Any]]:
    """The steps after the cast that a component gets."""
    quantize = {name: value for name, value in options.items() if name not in (OVERRIDES, SMOOTH)}
    if component == "unet" and OVERRIDES in options:
        quantize["overrides"] = [{"layers": list(options[OVERRIDES]), "format": "int8"}]
    steps: list[dict[str, Any]] = [{"quantize": quantize}]
    if options.get(SMOOTH) and component != "vae":  # where nothing takes the inverse scale
        same = {name: quantize[name] for name in ("format", "group_size", "scale_bits") if name in quantize}
        steps.insert(0, {"smooth": same})
    return steps


def _shipped() -> Iterator[Contender]:
    for name in SHIPPED:
        bits = int(re.search(r"\d", name + "4").group())  # type: ignore[union-attr]
        label = f"recipe {name}"
        yield Contender(f"recipe-{name}", label, OURS, "shipped recipes", bits, "rest8", options={"recipe": name})


def _eight_bits() -> Iterator[Contender]:
    whole = ("unet", "all")
    yield from _line("int", "one scale a channel", {"keep_sensitive": False}, (8,), whole, name="channel")
    searched = {"keep_sensitive": False, "rounding": "search"}
    yield from _line("int", "one scale a channel, scale search", searched, (8,), whole, name="channel-search")
    yield from _line("int", "nearest, symmetric", {**GROUPED, "rounding": "nearest"}, (8,), whole, name="nearest")
    yield from _line("uint", "GPTQ", GPTQ, (8,), whole, name="gptq")
    yield from _line("codebook", "k-means palettes", {"keep_sensitive": False}, (8,), whole)
    nf4 = {"format": "nf4", "convolutions": True, "keep_sensitive": False}
    for scope in EVERY_SCOPE:
        yield Contender("nf4-every", "nf4, convolutions too", OURS, "nf4", 4, scope, options=nf4)


def _methods() -> Iterator[Contender]:
    """One line a method, from 6 to 2 bits."""
    nearest = {**GROUPED, "rounding": "nearest"}
    yield from _line("int", "nearest, symmetric", nearest, LOW_BITS, name="nearest")
    yield from _line("uint", "nearest, zero points", nearest, LOW_BITS, name="nearest-zero")
    search = {**GROUPED, "rounding": "search"}
    yield from _line("int", "scale search, symmetric", search, LOW_BITS, name="search-int")
    yield from _line("uint", "scale search", search, LOW_BITS, name="search")
    weighted = {**GROUPED, "rounding": "weighted-search"}
    yield from _line("uint", "weighted scale search", weighted, LOW_BITS, name="weighted")
    yield from _line("uint", "HQQ", {**GROUPED, "rounding": "hqq"}, LOW_BITS, name="hqq")
    yield from _line("int", "GPTQ, symmetric", GPTQ, LOW_BITS, name="gptq-int")
    yield from _line("uint", "GPTQ", GPTQ, LOW_BITS, EVERY_SCOPE, name="gptq")
    palettes = {"keep_sensitive": False}
    yield from _line("codebook", "k-means palettes", palettes, LOW_BITS)
    calibrated = {**palettes, "rounding": "weighted-search"}
    yield from _line("codebook", "weighted k-means palettes", calibrated, LOW_BITS, name="codebook-weighted")
    compensated = {**palettes, "rounding": "gptq", "bias_correction": True}
    yield from _line("codebook", "palettes, GPTQ", compensated, LOW_BITS, name="codebook-gptq")


def _variants() -> Iterator[Contender]:
    """Corrections, other groups and spared layers, at 4 bits and below."""
    low = VERY_LOW_BITS
    search = {**GROUPED, "rounding": "search"}
    # conv_out has 4 output channels: too few for a low-rank correction, or to share a palette by 16.
    last = {OVERRIDES: ("conv_out",)}
    ranked = {**search, **last, "rank": 16}
    yield from _line("uint", "scale search, rank 16", ranked, low, name="search-rank16")
    yield from _line("uint", "scale search, Hadamard", {**search, "hadamard": True}, low, name="search-hadamard")
    plain = {**GPTQ, "bias_correction": False}
    yield from _line("uint", "GPTQ without bias correction", plain, low, name="gptq-plain")
    for rank in (4, 16):
        ranked = {**GPTQ, **last, "rank": rank}
        yield from _line("uint", f"GPTQ, rank {rank}", ranked, low, name=f"gptq-rank{rank}")
    yield from _line("uint", "GPTQ, Hadamard", {**GPTQ, "hadamard": True}, low, name="gptq-hadamard")
    yield from _line("uint", "GPTQ after smoothing", {**GPTQ, SMOOTH: True}, low, name="gptq-smooth")
    for group in (16, 32, 128, 512):
        options = {**GPTQ, "group_size": group}
        yield from _line(
            "uint", f"GPTQ, groups of {group}", options, (8, *LOW_BITS), ("unet", "all"), name=f"gptq-group{group}"
        )
    yield from _line("uint", "GPTQ, 16-bit scales", {**GPTQ, "scale_bits": 16}, low, name="gptq-scale16")
    spared = {**GPTQ, "keep_sensitive": True}
    yield from _line("uint", "GPTQ, sensitive layers in float16", spared, low, name="gptq-keep")
    few = {**GPTQ, OVERRIDES: FEW}
    bits = (6, 5, 4, 3, 2)
    yield from _line("uint", "GPTQ, first, last and time layers in 8 bits", few, bits, EVERY_SCOPE, name="gptq-few8")
    more = {**GPTQ, OVERRIDES: SENSITIVE}
    yield from _line("uint", "GPTQ, sensitive layers in 8 bits", more, low, EVERY_SCOPE, name="gptq-more8")
    shared = {"keep_sensitive": False, "group_size": 16, **last}
    yield from _line("codebook", "palettes of 16 channels", shared, low, name="codebook16")
    for rounding in ("nearest", "search", "gptq"):
        options = {"format": "normal-float4", **GROUPED, "rounding": rounding}
        label = f"normal-float4, {rounding}"
        yield Contender(f"normal-float4-{rounding}", label, OURS, "normal-float4", 4, "unet", options=options)


def _line(
    prefix: str,
    family: str,
    options: Mapping[str, Any],
    bits: tuple[int, ...],
    scopes: tuple[str, ...] = ("unet",),
    name: str | None = None,
) -> Iterator[Contender]:
    """Contenders of one family: the formats `prefix` + bits."""
    for each in bits:
        given = {"format": f"{prefix}{each}", **options}
        for scope in scopes:
            label = f"{prefix}{each}, {family}"
            yield Contender(f"{name or prefix}-{each}", label, OURS, family, each, scope, options=given)
