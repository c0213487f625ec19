"""The tables of layers: what each got, and how far it is from what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdcompress.report.layers import format_rows, layer_rows
from sdcompress.report.markdown import to_markdown

Make = Callable[..., dict[str, Any]]


def test_formats_with_the_median_and_the_lowest_of_their_layers(make_report: Make) -> None:
    """Bits are over parameters: two layers of 9 M each, of 4.25 and 4.75 bits. Medians of 20.5 and 21.5 are 21."""
    assert format_rows(make_report()) == [
        ("unet", "uint4/64+scale8, gptq", "2", "18.0 M", "4.50", "21.0 (20.5)", "26.5 (25.8)"),
        ("unet", "left alone: sensitive layer conv_in (keep_sensitive)", "1", "2.0 M", "-", "-", "-"),
        ("vae", "int8", "1", "2.0 M", "8.00", "42.0 (42.0)", "-"),
    ]


def test_layers_in_the_order_of_their_error(make_report: Make) -> None:
    rows = layer_rows(make_report())
    assert [row[0] for row in rows] == ["unet.a.conv2", "unet.a.conv1", "vae.conv"]
    assert rows[0] == ("unet.a.conv2", "conv3x3", "9,000,000", "uint4/64+scale8, gptq", "4.75", "20.5", "25.8")


def test_activations_are_named(make_report: Make) -> None:
    report = make_report()
    report["compressed"]["layers"] = [{**report["compressed"]["layers"][3], "activations": "int8"}]
    assert format_rows(report)[0][1] == "int8, 8-bit activations"


def test_the_page_has_both_tables_and_leaves_them_out_where_there_is_nothing_to_tell(make_report: Make) -> None:
    report = make_report()
    text = to_markdown(report)
    assert "| unet | uint4/64+scale8, gptq | 2 | 18.0 M | 4.50 | 21.0 (20.5) | 26.5 (25.8) |" in text
    assert text.index("unet.a.conv2 |") < text.index("unet.a.conv1 |")
    del report["compressed"]["layers"]  # as in reports of versions before
    assert "## Layers" not in to_markdown(report)
