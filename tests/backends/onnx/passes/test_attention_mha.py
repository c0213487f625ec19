"""attention: `Attention` between split and joined heads becomes ONNX Runtime's MultiHeadAttention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_graphs import TOLERANCE, build, check_pass, operators, random, run

from sdcompress.backends.onnx.passes import attention_mha

HEADS, SIZE = 2, 4
HIDDEN = HEADS * SIZE


def attention(attributes: str = "", mask: str = "", extra_output: str = "") -> str:
    """Attention on [batch, tokens, hidden]; `mask`: its type and shape."""
    given = f", {mask} m" if mask else ""
    also = f", float[n, {HEADS}, s, {SIZE}] a" if extra_output else ""
    heads = "".join(
        f"""
            {name}r = Reshape({name}, split)
            {name}h = Transpose<perm = [0, 2, 1, 3]>({name}r)"""
        for name in "qkv"
    )
    return f"""g (float[n, s, {HIDDEN}] q, float[n, t, {HIDDEN}] k, float[n, t, {HIDDEN}] v{given})
            => (float[n, s, {HIDDEN}] y{also})
        <int64[4] split = {{0, 0, {HEADS}, {SIZE}}}, int64[3] join = {{0, 0, {HIDDEN}}}> {{{heads}
            a = Attention{attributes and f"<{attributes}>"}(qh, kh, vh{", m" if mask else ""})
            j = Transpose<perm = [0, 2, 1, 3]>(a)
            y = Reshape(j, join)
        }}"""


def inputs(queries: int = 5, keys: int = 7) -> dict[str, torch.Tensor]:
    return {
        name: random(2, count, HIDDEN, seed=index)
        for index, (name, count) in enumerate((("q", queries), ("k", keys), ("v", keys)))
    }


@pytest.mark.parametrize(
    ("attributes", "mask", "queries", "keys"),
    [
        ("", None, 5, 5),
        ("", None, 5, 7),
        ("scale = 0.3", None, 5, 7),
        ("is_causal = 1", None, 6, 6),
        ("", (1, 1, 5, 7), 5, 7),
        ("", (2, HEADS, 5, 7), 5, 7),
    ],
)
def test_the_same_numbers(attributes: str, mask: tuple[int, ...] | None, queries: int, keys: int) -> None:
    text = attention(attributes, f"float[{', '.join(map(str, mask))}]" if mask else "")
    feeds = inputs(queries, keys) | ({"m": random(*mask, seed=9)} if mask else {})
    model = build(text, {})
    # Softmax of scores around 1: ONNX Runtime's tiles compute exp in another order and approximation, 1e-6 or so.
    check_pass(attention_mha.apply, model, feeds, left={"MultiHeadAttention": 1})
    assert model.opset_imports["com.microsoft"] == 1


def test_a_mask_of_truth_values_becomes_a_summand() -> None:
    model = build(attention(mask="bool[1, 1, 5, 7]"), {})
    kept = torch.ones(1, 1, 5, 7, dtype=torch.bool).tril(diagonal=2)
    feeds = inputs(5, 7) | {"m": kept}
    check_pass(attention_mha.apply, model, feeds, left={"Where": 1, "MultiHeadAttention": 1})


@pytest.mark.parametrize(
    ("attributes", "mask"),
    [
        ("softcap = 2.0", ""),  # MultiHeadAttention has none
        ("", "float[5, 7]"),  # and has four axes
    ],
)
def test_what_it_cannot_say_stays(attributes: str, mask: str) -> None:
    model = build(attention(attributes, mask), {})
    assert attention_mha.apply(model) == (1, 0)
    assert operators(model) == {"Reshape": 4, "Transpose": 4, "Attention": 1}


def test_heads_that_are_also_put_out_are_split_again() -> None:
    model = build(attention(extra_output="a"), {})
    check_pass(attention_mha.apply, model, inputs())
    assert operators(model)["MultiHeadAttention"] == 1 and "Attention" not in operators(model)


def test_heads_that_something_happened_to_are_joined_for_it() -> None:
    """Rotary positions and norms per head work between the splitting of the heads and the attention."""
    kind = f"float[n, {HEADS}, s, {SIZE}]"
    model = build(f"g ({kind} q, {kind} k, {kind} v) => ({kind} y) {{ y = Attention(q, k, v) }}", {})
    feeds = {name: random(2, HEADS, 5, SIZE, seed=index) for index, name in enumerate("qkv")}
    check_pass(attention_mha.apply, model, feeds)


def test_fewer_heads_of_keys_than_of_queries_stay() -> None:
    queries, keys = f"float[n, {HEADS}, s, {SIZE}]", f"float[n, 1, s, {SIZE}]"
    model = build(f"g ({queries} q, {keys} k, {keys} v) => ({queries} y) {{ y = Attention(q, k, v) }}", {})
    assert attention_mha.apply(model) == (1, 0)


@pytest.mark.parametrize("rows", ["1", "r"])
def test_one_row_of_a_mask_for_all_queries(rows: str) -> None:
    """Padding is hidden from every query alike; MultiHeadAttention wants a row for each."""
    model = build(attention(mask=f"float[2, {HEADS}, {rows}, 7]"), {})
    mask = random(2, HEADS, 1, 7, seed=9)
    whole = build(attention(mask=f"float[2, {HEADS}, 5, 7]"), {})  # ONNX Runtime's Attention wants one too
    (expected,) = run(whole, inputs(5, 7) | {"m": mask.expand(-1, -1, 5, -1)})
    assert attention_mha.apply(model) == (1, 1)
    assert operators(model)["Expand"] == 1
    np.testing.assert_allclose(run(model, inputs(5, 7) | {"m": mask})[0], expected, atol=TOLERANCE)
