"""attention: `Attention` as MatMul, Softmax, MatMul of the standard operators."""

from __future__ import annotations

import pytest
import torch
from small_graphs import build, check_pass, operators, random

from sdcompress.backends.onnx.passes import attention_standard

KIND = "float[n, 2, s, 4]"
OTHER = "float[n, 2, t, 4]"
FEEDS = {"q": random(2, 2, 5, 4), "k": random(2, 2, 7, 4, seed=1), "v": random(2, 2, 7, 4, seed=2)}
STEPS = {"Mul": 1, "Transpose": 1, "MatMul": 2, "Softmax": 1}


@pytest.mark.parametrize("attributes", ["", "scale = 0.3"])
@pytest.mark.parametrize("mask", [None, (5, 7), (1, 1, 5, 7), (2, 2, 5, 7)])
def test_the_same_numbers(attributes: str, mask: tuple[int, ...] | None) -> None:
    given = f", float[{', '.join(map(str, mask))}] m" if mask else ""
    model = build(
        f"g ({KIND} q, {OTHER} k, {OTHER} v{given}) => ({KIND} y)"
        f"{{ y = Attention{attributes and f'<{attributes}>'}(q, k, v{', m' if mask else ''}) }}",
        {},
    )
    feeds = FEEDS | ({"m": random(*mask, seed=3)} if mask else {})
    check_pass(attention_standard.apply, model, feeds, left=STEPS | ({"Add": 1} if mask else {}))
    assert {node.domain for node in model.graph} == {""}


def test_keys_are_transposed_once() -> None:
    """Where the heads are split by a transpose already, one transpose does both."""
    model = build(
        f"""g ({KIND} q, float[n, t, 2, 4] k, {OTHER} v) => ({KIND} y) {{
            h = Transpose<perm = [0, 2, 1, 3]>(k)
            y = Attention(q, h, v)
        }}""",
        {},
    )
    check_pass(attention_standard.apply, model, FEEDS | {"k": random(2, 7, 2, 4, seed=1)}, left=STEPS)


def test_a_boolean_mask_becomes_a_summand() -> None:
    model = build(f"g ({KIND} q, {OTHER} k, {OTHER} v, bool[5, 7] m) => ({KIND} y) {{ y = Attention(q, k, v, m) }}", {})
    feeds = FEEDS | {"m": torch.ones(5, 7, dtype=torch.bool).tril(diagonal=2)}
    check_pass(attention_standard.apply, model, feeds, left=STEPS | {"Where": 1, "Add": 1})


@pytest.mark.parametrize("attributes", ["softcap = 2.0", "is_causal = 1"])
def test_what_it_does_not_do_stays(attributes: str) -> None:
    model = build(f"g ({KIND} q, {OTHER} k, {OTHER} v) => ({KIND} y) {{ y = Attention<{attributes}>(q, k, v) }}", {})
    assert attention_standard.apply(model) == (1, 0)
    assert operators(model) == {"Attention": 1}
