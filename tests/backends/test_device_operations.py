"""What a GPU would stumble over, found without one: on the meta device every operation is dispatched as it is there.

No tensor of the CPU may meet one of the device, nothing may be copied between them or read back, and dequantizing
takes few operations, since a GPU's time goes into starting them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from stored_weights import format_of, quantized_pair
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sdcompress.backends.torch.gathering import MomentObserver
from sdcompress.backends.torch.modules import replace_layers
from sdcompress.backends.torch.packaging import rounds_inputs
from sdcompress.quant import statistics
from sdcompress.quant.registry import known_formats
from sdcompress.quant.statistics import Limits

META = torch.device("meta")
LABELS = (
    *sorted(known_formats()), "int8/16", "int4/64+scale8", "uint4/20", "uint4/16+scale8+rank4+hadamard",
    "normal-float4/64+scale8", "codebook4/5", "codebook3/7+rank4", "int4+rank4", "int8+hadamard",
)  # fmt: skip
LAYERS = {
    "linear": (lambda: nn.Linear(64, 72), (2, 5, 64)),
    "convolution": (lambda: nn.Conv2d(64, 72, 3, padding=1), (2, 64, 9, 7)),
    "embedding": (lambda: nn.Embedding(72, 64), (2, 9)),
}
FROM_VALUES = {torch.tensor, torch.as_tensor, torch.Tensor.new_tensor}  # copies, which the dispatcher does not see
STARTS_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "_reshape_alias"}


class Device(TorchDispatchMode):
    """Lists the operations, and refuses those that a GPU would have to wait for or could not do."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        tensors = [value for value in pytree.tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
        assert {value.device.type for value in tensors} <= {"meta"}, f"{name} is not on the device alone"
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select"), f"{name} reads the device's values"
        if not func.is_view and name not in STARTS_NOTHING:
            self.started.append(name)
        return result


class NoValues(TorchFunctionMode):
    """Refuses tensors made of Python's numbers, which are copied to the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in FROM_VALUES, f"{func.__name__} copies values to the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def on_the_device() -> Iterator[list[str]]:
    with torch.no_grad(), Device() as device, NoValues():
        yield device.started


def layer_on_the_device(label: str, kind: str, rounds_input: bool = False) -> nn.Module:
    make, _ = LAYERS[kind]
    model = nn.Sequential(make())
    replace_layers(model, {"0": format_of(label)}, ["0"] if rounds_input else [])
    return model.to(META, torch.float16)


def input_on_the_device(kind: str, channels_last: bool = False) -> torch.Tensor:
    shape = LAYERS[kind][1]
    if kind == "embedding":
        return torch.zeros(shape, dtype=torch.int64, device=META)
    x = torch.empty(shape, dtype=torch.float16, device=META)
    return x.contiguous(memory_format=torch.channels_last) if channels_last and kind == "convolution" else x


def fits(label: str, kind: str) -> bool:
    return kind in ("linear", "convolution") or kind in format_of(label).kinds


@pytest.mark.parametrize(("label", "kind"), [(label, kind) for label in LABELS for kind in LAYERS if fits(label, kind)])
def test_layers_stay_on_their_device(label: str, kind: str) -> None:
    for channels_last in (False, True):
        layer, x = layer_on_the_device(label, kind), input_on_the_device(kind, channels_last)
        layer(x)  # which makes the constants
        with on_the_device():
            y = layer(x)
        assert y.device == META and y.dtype == torch.float16


@pytest.mark.parametrize("label", [label for label in LABELS if rounds_inputs(format_of(label))])
def test_rounded_inputs_stay_on_their_device(label: str) -> None:
    layer, x = layer_on_the_device(label, "linear", rounds_input=True), input_on_the_device("linear")
    with on_the_device():
        assert layer(x).dtype == torch.float16


@pytest.mark.parametrize(
    ("label", "most"),
    [("int8", 1), ("uint8", 4), ("int4", 4), ("uint4", 6), ("int3", 7), ("normal-float4", 5), ("codebook4", 4)],
)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_dequantizing_takes_few_operations(label: str, kind: str, most: int) -> None:
    """Beside the layer's own; where the memory formats of codes and input differ, the weight is copied once."""
    layer, x = layer_on_the_device(label, kind), input_on_the_device(kind, channels_last="8" not in label)
    layer(x)
    with on_the_device() as started:
        layer(x)
    assert len(started) - 1 <= most, started


def test_a_scaled_embedding_stays_on_its_device() -> None:
    model = nn.Sequential(nn.Embedding(72, 64))
    model[0].scalar_embed_scale = 8.0
    replace_layers(model, {"0": format_of("int4")})
    model.to(META, torch.bfloat16)
    model(input_on_the_device("embedding"))
    with on_the_device():
        assert model(input_on_the_device("embedding")).dtype == torch.bfloat16


class Nowhere:
    """A store of statistics that keeps nothing."""

    def load_progress(self, component: str) -> Any: ...
    def save_progress(self, component: str, progress: Any) -> None: ...
    def save_statistics(self, component: str, accumulators: Any) -> None: ...


def test_gathering_statistics_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_DEFERRED", {"meta"})
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Flatten(2), nn.Linear(63, 5)).to(META)
    observer = MomentObserver({"unet": ["0", "2"]}, Limits(), Nowhere())
    with observer.observe("unet", model, runs=2):
        for _ in range(2):
            with on_the_device():
                model(torch.empty(2, 8, 9, 7, device=META))


@torch.no_grad()
@pytest.mark.parametrize("label", LABELS)
def test_compiled_in_one_graph(label: str) -> None:
    """torch.compile finds nothing in a layer of any format that would part its graph."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    kinds = [kind for kind in ("embedding", "linear", "convolution") if fits(label, kind)]
    layers = {kind: quantized_pair(LAYERS[kind][0](), label)[0] for kind in kinds}
    inputs = {kind: torch.randn(LAYERS[kind][1]) for kind in kinds}
    inputs |= {"embedding": torch.arange(18).view(2, 9)} if "embedding" in kinds else {}

    def run(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [layers[kind](x) for kind, x in inputs.items()]

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for found, want in zip(compiled(inputs), run(inputs), strict=True):
        # Sums of 576 products of values below 8 and 4, in another order.
        assert torch.allclose(found, want, rtol=0, atol=576 * 32 * 2.0**-24)


@torch.no_grad()
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("label", ["int8/9", "uint3/32"])
def test_compiled_groups_of_uneven_size(label: str) -> None:
    """With repeat_interleave, torch 2.13 left the last group of 48 channels out on a CPU."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, _ = quantized_pair(nn.Conv2d(48, 72, 3) if label == "uint3/32" else nn.Linear(48, 40), label)
    x = torch.randn(2, 48, 4, 4) if label == "uint3/32" else torch.randn(2, 48)
    want = layer(x)
    found = torch.compile(layer, fullgraph=True)(x)
    assert torch.allclose(found, want, rtol=0, atol=1e-4 * float(want.abs().max()))
