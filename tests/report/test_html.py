"""The HTML report without a browser: what it holds, what it must never hold, how large it is, and its charts."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcompress.report import Report
from sdcompress.report.charts import Axis, Mark, bars, scatter, strips, ticks
from sdcompress.report.html import to_html
from sdcompress.report.pair_table import pair_table, worst_first
from sdcompress.report.templates import json_island
from sdcompress.report.thumbnails import ENCODINGS, embed_pairs
from sdcompress.report.tiles import make_tiles

Make = Callable[..., Report]
Alter = Callable[..., Report]
Save = Callable[..., None]

ATTACK = """<script>alert(1)</script></script><img src=x onerror=alert(2)>"'&{{ 7 * 7 }}"""


def data_of(page: str) -> dict[str, Any]:
    """What the page's scripts are given."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_nothing_a_user_wrote_becomes_html(make_report: Make, alter: Alter, tmp_path: Path) -> None:
    prompt = ATTACK + "\u2028 ünïcode 雪"
    paths = (
        "compressed.name", "scorer.name", "command", "compressed.layers.0.layer", "compressed.layers.0.component",
        "recipe.description", "gates.0.gate", "noise_floor.sources.seed.label", "attribution.0.name",
        "attribution.0.ladder.1.step", "attribution.0.ladder.1.not_measured", "attribution.1.ladder_not_measured",
    )  # fmt: skip
    changes: dict[str, Any] = dict.fromkeys(paths, ATTACK) | {
        "samples.0.prompt": prompt,
        "not_measured": {ATTACK: ATTACK},
    }
    changes |= {"compressed.components": {ATTACK: {}}, "component_metrics": {ATTACK: {"agreement": 1.0}}}
    report = alter(make_report(whole=True), changes)
    page = to_html(report, tmp_path)
    for text in (page, report._repr_html_()):
        assert "<script>alert" not in text and "<img src=x" not in text
        assert "{{ 7 * 7 }}" in text  # a template of the user's own stays what it is
    assert page.count("<script") == 2 and page.count("</script>") == 2  # the data and our own
    prompts = [row["cells"][0] for row in data_of(page)["samples"]["rows"]]
    assert sorted(prompts) == sorted(sample.prompt for sample in report.samples)


def test_nothing_is_fetched(make_report: Make, save_pictures: Save, tmp_path: Path) -> None:
    report = make_report(whole=True)
    save_pictures(report, tmp_path)
    page = to_html(report, tmp_path)
    for text in (page, report._repr_html_()):
        assert not re.search(r'(?:src|href)="(?!#|data:)', text)
        assert "url(" not in text and "@import" not in text and "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in html.unescape(page)


def test_a_notebook_gets_headlines_and_the_table(make_report: Make) -> None:
    text = make_report(whole=True)._repr_html_()
    ElementTree.fromstring(text.replace("<style>", "<style><![CDATA[").replace("</style>", "]]></style>"))
    for words in ("tiny-int8 against tiny", "Time per picture", "weights in memory", "size_ratio&lt;0.1", "FAILED"):
        assert words in text


def test_island_ends_no_script() -> None:
    value = {"a": "</script><!--", "b": "\u2028\u2029", "c": "&lt;"}
    text = json_island(value)
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == value


def test_what_is_missing_is_said(make_report: Make, alter: Alter, tmp_path: Path) -> None:
    report = alter(make_report(scored=False), {"compressed.peak_memory_bytes": None})
    tiles = {tile.label: tile for tile in make_tiles(report)}
    assert tiles["CLIP drift"].value == tiles["Peak memory"].value == "not measured"
    assert "noise floor: not measured" in tiles["Same-seed PSNR, dB"].notes
    page = to_html(report, tmp_path)
    assert "Not measured in this report" in page and "No picture is embedded" in page
    assert not re.search(r"<t[dh][^>]*>\s*-\s*</td>", page)  # no cell is a dash
    assert "Loss while recovering" not in page and "Loss while recovering" in to_html(make_report(whole=True), tmp_path)


def test_tiles_say_verdict_and_noise(make_report: Make) -> None:
    tiles = {tile.label: tile for tile in make_tiles(make_report(whole=True))}
    assert (tiles["CLIP drift"].chip, tiles["CLIP drift"].tone) == ("worse", "bad")
    assert "noise: another seed +0.30 [+0.20, +0.40]" in tiles["CLIP drift"].notes
    assert "noise: in bfloat16 50.8 [50.0, 51.5]" in tiles["Same-seed PSNR, dB"].notes
    assert (tiles["Size on disk"].chip, tiles["Size on disk"].tone) == ("0.50x", "good")
    same = {tile.label: tile for tile in make_tiles(make_report(identical=True, drift=0.0, whole=True))}
    assert (same["CLIP drift"].chip, same["CLIP drift"].tone) == ("within noise", "calm")
    assert same["Same-seed PSNR, dB"].value == "identical"


def test_worst_pairs_come_first(make_report: Make, alter: Alter) -> None:
    scores = {f"samples.{i}.compressed.clip_score": 30.0 + i + drift for i, drift in enumerate((-0.5, 1.0, -2.0, -9.0))}
    report = alter(make_report(count=4, blocked=(3,)), scores)
    assert [sample.index for sample in worst_first(report.samples)] == [2, 0, 1, 3]  # the blocked one says nothing
    table = pair_table(report.samples)
    assert table.columns == (
        "prompt",
        "seed",
        "CLIP drift",
        "CLIP score",
        "PSNR, dB",
        "SSIM",
        "CLIP image",
        "time",
        "note",
    )
    rows = table.to_data()["rows"]
    assert rows[0] == {
        "key": 2,
        "cells": ["prompt number 2 | of *many*", ["42", 42], ["-2.00", -2.0], ["32.00 → 30.00", 30.0], ["42.0", 42.0],
                  ["0.920", 0.92], ["99.02", 99.02], ["1.20 s → 0.60 s", 0.6], ""],
    }  # fmt: skip
    assert rows[3]["cells"][2] == ["not measured", None] and rows[3]["cells"][-1] == "blocked: compressed"
    unscored = alter(make_report(count=3, scored=False), {"samples.1.psnr_db": 12.0})
    assert worst_first(unscored.samples)[0].index == 1
    assert pair_table(make_report(identical=True).samples).to_data()["rows"][0]["cells"][4] == ["infinite", 1e9]


def test_pictures_are_lossless_where_they_fit(make_report: Make, save_pictures: Save, tmp_path: Path) -> None:
    report = make_report(count=3)
    save_pictures(report, tmp_path)
    pictures, encoding = embed_pairs(report.samples, tmp_path)
    assert encoding is ENCODINGS[0] and sorted(pictures) == [0, 1, 2]
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[1]["compressed"].split(",", 1)[1]))).convert("RGB")
    saved = Image.open(tmp_path / report.samples[1].compressed.picture).convert("RGB")
    assert np.array_equal(np.asarray(shown), np.asarray(saved))


def test_pictures_keep_to_their_bytes(make_report: Make, save_pictures: Save, tmp_path: Path) -> None:
    report = make_report(count=4)
    save_pictures(report, tmp_path, (256, 256), 256)
    pictures, encoding = embed_pairs(report.samples, tmp_path, most_bytes=120_000)
    assert encoding is not None and encoding.quality is not None
    written = sum(len(uri) for pair in pictures.values() for uri in pair.values())
    assert written <= 120_000 * 4 / 3 + 8 * 40  # base64, heads


def test_two_hundred_prompts_stay_under_15_mb(
    make_report: Make, alter: Alter, save_pictures: Save, tmp_path: Path
) -> None:
    """Where pictures are noise, prompts have 2,000 characters and layers are many."""
    report = make_report(count=200)
    prompts = {f"samples.{i}.prompt": f"prompt {i} {'<long> ' * 285}" for i in range(200)}
    report = alter(report, prompts | {"compressed.layers": report.to_dict()["compressed"]["layers"] * 750})
    save_pictures(report, tmp_path, (96, 96), 96)
    page = to_html(report, tmp_path)
    assert 2_000_000 < len(page.encode()) < 15_000_000
    assert page.count("data:image/webp") == 400


def test_charts_are_well_formed_and_labels_do_not_overlap() -> None:
    axis = Axis("x & y", lambda value: f"<{value:.3g}>")
    marks = [Mark(i, 30 + i % 2, f"<b>{i}", "front", (29.0, 33.0)) for i in range(12)] + [Mark(3, float("inf"), "same")]
    for svg in (
        scatter(marks, axis, axis, title='"', lines=[(15.0, "a<b")], front=True),
        strips([("a<", "original", [1.0, 2.0, 5.0]), ("b", "compressed", [])], axis.text, title="t"),
        bars([("<unet>", 10.0, None)], axis.text, title="t"),
    ):
        ElementTree.fromstring(svg)
        assert "<b>" not in svg and "nan" not in svg and "inf" not in svg
    assert "not measured" in bars([("a", 1.0, None)], axis.text, title="t")


@pytest.mark.parametrize("values", [[0.0], [], [5.0, 5.0], [1e9, 4e9], [-0.31, 0.22], [0.0, 1e-7]])
def test_ticks_span_the_values(values: list[float]) -> None:
    steps = ticks(values)
    assert 2 <= len(steps) <= 8 and steps == sorted(set(steps))
    for value in values:
        assert steps[0] <= value + 1e-12 and value <= steps[-1] + 1e-12  # 1e-12: rounding of step * place
