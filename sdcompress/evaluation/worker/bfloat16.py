"""bfloat16 on processors that torch has no fast bfloat16 for, such as those with AVX2 alone: 14 times float32's time.

What such arithmetic does to a number is to round the result of each operation, whose sums are in float32 anyway. So
where time does not matter, the products are computed in float32 and rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    (
        functional.linear, functional.conv2d, functional.conv_transpose2d, functional.scaled_dot_product_attention,
        torch.matmul, torch.bmm, torch.baddbmm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm,
    )
)  # fmt: skip


def is_fast() -> bool:
    """Return whether torch computes convolutions and linear layers in bfloat16 at float32's speed, or faster."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class RoundedProducts(TorchFunctionMode):
    """While in the context, products of bfloat16 tensors are computed in float32 and rounded to bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS:
            return func(*args, **kwargs)
        values, structure = pytree.tree_flatten((args, kwargs))
        rounded = [isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 for value in values]
        if not any(rounded):
            return func(*args, **kwargs)
        values = [value.float() if each else value for value, each in zip(values, rounded, strict=True)]
        args, kwargs = pytree.tree_unflatten(values, structure)
        return func(*args, **kwargs).to(torch.bfloat16)
