"""The peers' contenders: which settings of bitsandbytes, torchao, optimum-quanto and SDNQ are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.quality.contender import PEERS, Contender

DISTRIBUTIONS = ("torch", "diffusers", "transformers", "bitsandbytes", "torchao", "optimum-quanto", "sdnq")
EVERY_SCOPE = ("unet", "all", "rest8")

# What each library puts on text encoder and VAE in scope `rest8`.
EIGHT_BITS: Mapping[str, Mapping[str, Any]] = {
    "bitsandbytes": {"format": "int8"},
    "torchao": {"config": "Int8WeightOnlyConfig"},
    "quanto": {"weights": "qint8"},
    "sdnq": {"weights_dtype": "int8", "quant_conv": True, "quant_embedding": True},
}

# SDNQ's names for the bits its documentation recommends: symmetric from six bits up, with zero points below.
SDNQ_DTYPES = {8: "int8", 6: "int6", 5: "uint5", 4: "uint4", 3: "uint3", 2: "uint2"}
# Without its default skip list (`add_skip_keys`) and without the smallest sizes it quantizes.
SDNQ_NO_SKIPS = {"add_skip_keys": False, "minimum_allowed_numel": 0, "minimum_allowed_channel_size": 0}


def list_peers() -> tuple[Contender, ...]:
    """Every peer's contender in every scope it is measured in."""
    return (*_bitsandbytes(), *_torchao(), *_quanto(), *_sdnq())


def _bitsandbytes() -> Iterator[Contender]:
    family = "bitsandbytes"
    for name, label, bits, options in (
        ("bnb-int8", "bitsandbytes LLM.int8", 8, {"format": "int8"}),
        ("bnb-nf4", "bitsandbytes NF4", 4, {"format": "nf4"}),
        ("bnb-nf4-double", "bitsandbytes NF4, double quantization", 4, {"format": "nf4", "double": True}),
        ("bnb-fp4", "bitsandbytes FP4", 4, {"format": "fp4"}),
    ):
        yield from _each(EVERY_SCOPE if name != "bnb-fp4" else ("unet",), name, label, family, bits, options)


def _torchao() -> Iterator[Contender]:
    linear = "torchao, linear layers"
    eight = {"config": "Int8WeightOnlyConfig"}
    four = {"config": "Int4WeightOnlyConfig"}
    yield from _each(("unet", "all"), "torchao-int8", "torchao Int8WeightOnly", linear, 8, eight)
    yield from _each(("unet",), "torchao-int4", "torchao Int4WeightOnly", linear, 4, four)
    tile_packed = {**four, "int4_packing_format": "TILE_PACKED_TO_4D"}
    yield from _each(("unet",), "torchao-int4-tiles", "torchao Int4WeightOnly, tiles", linear, 4, tile_packed)
    for bits in (4, 2):
        intx = {"config": "IntxWeightOnlyConfig", "bits": bits, "group_size": 64}
        label = f"torchao IntxWeightOnly int{bits}, groups of 64"
        yield from _each(("unet",), f"torchao-intx{bits}", label, linear, bits, intx)
    everywhere = "torchao, linear layers and convolutions"
    for bits in (8, 6, 5, 4, 3, 2):
        intx = {"config": "IntxWeightOnlyConfig", "bits": bits, "group_size": 64, "convolutions": True}
        label = f"torchao IntxWeightOnly int{bits}, groups of 64, convolutions too"
        scopes = ("unet", "all") if bits in (8, 4) else ("unet",)
        yield from _each(scopes, f"torchao-intx{bits}-conv", label, everywhere, bits, intx)
    hqq = {"config": "IntxWeightOnlyConfig", "bits": 4, "group_size": 64, "hqq": True}  # matrices alone
    yield from _each(("unet",), "torchao-intx4-hqq", "torchao IntxWeightOnly int4, HQQ", linear, 4, hqq)


def _quanto() -> Iterator[Contender]:
    for weights, bits in (("qint8", 8), ("qint4", 4), ("qint2", 2)):
        label = f"quanto {weights}"
        scopes = ("unet", "all") if bits == 8 else EVERY_SCOPE
        yield from _each(scopes, f"quanto-int{bits}", label, "optimum-quanto", bits, {"weights": weights})
    yield from _each(("unet",), "quanto-float8", "quanto qfloat8", "optimum-quanto", 8, {"weights": "qfloat8"})
    for bits in (4, 2):
        options = {"weights": f"qint{bits}", "optimizer": "HqqOptimizer"}
        yield from _each(("unet",), f"quanto-int{bits}-hqq", f"quanto qint{bits}, HQQ", "quanto, HQQ", bits, options)


def _sdnq() -> Iterator[Contender]:
    low = (4, 3, 2)
    whole = ("unet", "all")
    scales = {"scale_dtype": "uint8"}
    svd = {"use_svd": True, "svd_rank": 32, **scales}
    small = {"use_svd": True, "svd_rank": 8, **scales}
    hadamard = {"use_hadamard": True, **scales}
    codebook = {"use_codebook": True, **scales}
    full = {**SDNQ_NO_SKIPS, **scales}
    yield from _sdnq_line("sdnq", "SDNQ", {}, (8, 6, 5, 4, 3, 2), whole)
    yield from _sdnq_line("sdnq-scale8", "SDNQ, 8-bit scales", scales, (6, 5, 4, 3, 2), EVERY_SCOPE)
    yield from _sdnq_line("sdnq-codebook-scale8", "SDNQ, codebook, 8-bit levels", codebook, (5, 4, 3, 2), EVERY_SCOPE)
    yield from _sdnq_line("sdnq-svd8-scale8", "SDNQ, SVD 8, 8-bit scales", small, low, EVERY_SCOPE)
    yield from _sdnq_line("sdnq-full", "SDNQ, no skip list", SDNQ_NO_SKIPS, (8,), whole)
    yield from _sdnq_line("sdnq-full-scale8", "SDNQ, no skip list, 8-bit scales", full, (6, 5, 4, 3, 2), whole)
    yield from _sdnq_line(
        "sdnq-full-codebook-scale8", "SDNQ, no skip list, codebook, 8-bit levels", {**full, **codebook}, low
    )
    yield from _sdnq_line("sdnq-full-svd8-scale8", "SDNQ, no skip list, SVD 8, 8-bit scales", {**full, **small}, low)
    yield from _sdnq_line("sdnq-svd", "SDNQ, SVD 32", {"use_svd": True, "svd_rank": 32}, low)
    yield from _sdnq_line("sdnq-svd-scale8", "SDNQ, SVD 32, 8-bit scales", svd, low)
    yield from _sdnq_line("sdnq-hadamard-scale8", "SDNQ, Hadamard, 8-bit scales", hadamard, low)
    both = {**small, **hadamard}
    yield from _sdnq_line("sdnq-svd8-hadamard-scale8", "SDNQ, SVD 8, Hadamard, 8-bit scales", both, low)
    dynamic = {"use_dynamic_quantization": True, **scales}
    yield from _sdnq_line("sdnq-dynamic-scale8", "SDNQ, dynamic, 8-bit scales", dynamic, low)
    yield from _sdnq_line("sdnq-scale16", "SDNQ, 16-bit scales", {"dequantize_fp32": False}, low)
    yield from _sdnq_line("sdnq-codebook", "SDNQ, codebook", {"use_codebook": True}, low)
    for group in (32, 128, -1):
        what = f"groups of {group}" if group > 0 else "per row"
        grouped = {"group_size": group, **scales}
        yield from _sdnq_line(f"sdnq-group{group}-scale8", f"SDNQ, {what}, 8-bit scales", grouped, (4, 3))
    yield from _sdnq_line("sdnq-linear", "SDNQ, linear layers alone (its default)", {"quant_conv": False}, (8, 4))
    float4 = {"weights_dtype": "float4_e2m1fn", **scales}
    yield from _sdnq_line("sdnq-float-scale8", "SDNQ, float4_e2m1fn, 8-bit scales", float4, (4,))


def _sdnq_line(
    name: str, family: str, options: Mapping[str, Any], bits: tuple[int, ...], scopes: tuple[str, ...] = ("unet",)
) -> Iterator[Contender]:
    for each in bits:
        given = {"weights_dtype": SDNQ_DTYPES[each], "quant_conv": True, "quant_embedding": True, **options}
        if given.get("use_codebook"):
            given["weights_dtype"] = f"uint{each}"  # a codebook has no signs
        what, _, rest = family.partition(",")
        label = f"{what} {given['weights_dtype']}{',' if rest else ''}{rest}"
        yield from _each(scopes, f"{name}-{each}", label, family, each, given)


def _each(
    scopes: tuple[str, ...], name: str, label: str, family: str, bits: int, options: Mapping[str, Any]
) -> Iterator[Contender]:
    library = {"bnb": "bitsandbytes"}.get(name.partition("-")[0], name.partition("-")[0])
    for scope in scopes:
        if scope != "rest8" or bits < 8:  # 8 bits and the rest in 8 bits: scope `all`
            yield Contender(name, label, PEERS, family, bits, scope, library, options)
