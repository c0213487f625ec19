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

from sdcompress.report.charts import Axis, Mark, bars, scatter, strips, ticks
from sdcompress.report.html import to_html
from sdcompress.report.page_attribution import attribution_rows
from sdcompress.report.page_tables import (
    floor_rows,
    gate_rows,
    layer_table,
    sample_table,
    worst_first,
)
from sdcompress.report.page_tiles import make_tiles
from sdcompress.report.templates import json_island
from sdcompress.report.thumbnails import ENCODINGS, embed_pairs

Make = Callable[..., dict[str, Any]]
Save = Callable[..., None]

ATTACK = """<script>alert(1)</script></script><img src=x onerror=alert(2)>"'&{{ 7 * 7 }}"""


def data_of(page: str) -> dict[str, Any]:
    """What the page's scripts are given."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_nothing_a_user_wrote_becomes_html(make_report: Make, tmp_path: Path) -> None:
    report = make_report()
    report["samples"][0]["prompt"] = ATTACK + "\u2028 ünïcode 雪"
    report["compressed"]["name"] = report["scorer"]["name"] = report["command"] = ATTACK
    report["compressed"]["components"][ATTACK] = report["compressed"]["components"].pop("vae")
    report["compressed"]["layers"][0] = {**report["compressed"]["layers"][0], "layer": ATTACK, "component": ATTACK}
    report["recipe"] = {"description": ATTACK}
    report["gates"] = [{"gate": ATTACK, "value": 1.0, "passed": False}]
    report["noise_floor"] = {"sources": {"seed": {"label": ATTACK, "psnr_db": {"mean": 15.0}}}}
    rung = {"step": ATTACK, "saved_bytes": 0, "not_measured": ATTACK}
    swap = {"name": ATTACK, "kind": "component", "saved_bytes": 1_000_000, "psnr_db": {"mean": 30.0}, "ladder": [rung]}
    report["attribution"] = [{**swap, "ladder_not_measured": ATTACK}]
    report["set_metrics"] = {ATTACK: {"value": 1.0, "pictures": 3, "reliable": False, "enough_pictures": 9}}
    report["not_measured"] = {ATTACK: ATTACK}
    page = to_html(report, tmp_path)
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "{{ 7 * 7 }}" in page  # a template of the user's own stays what it is
    assert page.count("<script") == 2 and page.count("</script>") == 2  # the data and our own
    prompts = [row["cells"][0] for row in data_of(page)["samples"]["rows"]]
    assert sorted(prompts) == sorted(sample["prompt"] for sample in report["samples"])


def test_nothing_is_fetched(make_report: Make, save_pictures: Save, tmp_path: Path) -> None:
    report = make_report()
    save_pictures(report, tmp_path)
    page = to_html(report, tmp_path)
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "url(" not in page and "@import" not in page and "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in html.unescape(page)


def test_island_ends_no_script() -> None:
    value = {"a": "</script><!--", "b": "\u2028\u2029", "c": "&lt;"}
    text = json_island(value)
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == value


def test_what_is_missing_is_said(make_report: Make, tmp_path: Path) -> None:
    report = make_report(scored=False)
    report["compressed"]["peak_memory_bytes"] = None
    tiles = {tile.label: tile for tile in make_tiles(report)}
    assert tiles["CLIP score drift"].value == tiles["Peak memory"].value == "not measured"
    assert "noise floor: not measured" in tiles["Same-seed PSNR"].notes
    page = to_html(report, tmp_path)
    assert "Not measured in this report" in page and "No picture is embedded" in page
    assert not re.search(r"<t[dh][^>]*>\s*-?\s*</td>", page)  # no cell is blank or a dash
    drift = sample_table(report)["rows"][0]["cells"][2]
    assert drift == ["not measured", None]


def test_tiles_say_verdict_and_noise(make_report: Make) -> None:
    report = make_report()
    report["verdicts"] = {"clip_score": {"verdict": "worse"}, "psnr_db": {"verdict": "within noise"}}
    seed = {"label": "another seed", "clip_score": {"difference": 0.05, "interval_95": [-0.2, 0.3]}}
    report["noise_floor"] = {"sources": {"seed": seed | {"psnr_db": {"mean": 15.25, "interval_95": [14.0, 16.0]}}}}
    tiles = {tile.label: tile for tile in make_tiles(report)}
    assert (tiles["CLIP score drift"].chip, tiles["CLIP score drift"].tone) == ("worse", "bad")
    assert (tiles["Same-seed PSNR"].chip, tiles["Same-seed PSNR"].tone) == ("within noise", "calm")
    assert "noise: another seed +0.05 [-0.20, +0.30]" in tiles["CLIP score drift"].notes
    assert "noise: another seed 15.25 [14.00, 16.00]" in tiles["Same-seed PSNR"].notes
    assert tiles["Size on disk"].tone == "good" and tiles["Size on disk"].chip == "0.50x"


def test_worst_comes_first(make_report: Make) -> None:
    report = make_report(count=4, blocked=(3,))
    for sample, drift in zip(report["samples"], (-0.5, 1.0, -2.0, -9.0), strict=True):
        sample["compressed"]["clip_score"] = sample["original"]["clip_score"] + drift
    assert [sample["index"] for sample in worst_first(report["samples"])] == [
        2,
        0,
        1,
        3,
    ]  # the blocked one says nothing
    unscored = make_report(count=3, scored=False)
    unscored["samples"][1]["psnr_db"] = 12.0
    assert worst_first(unscored["samples"])[0]["index"] == 1


def test_every_layer_has_its_row(make_report: Make) -> None:
    rows = layer_table(make_report())["rows"]
    assert [row["cells"][0] for row in rows] == ["unet.a.conv2", "unet.a.conv1", "vae.conv", "unet.conv_in"]
    assert rows[-1]["cells"][4] == ["not measured", None]
    assert "sensitive layer" in rows[-1]["cells"][3]


@pytest.mark.parametrize("optional", ["recovery", "metrics", "component_metrics"])
def test_optional_parts_are_shown(make_report: Make, tmp_path: Path, optional: str) -> None:
    report = make_report()
    value, words = {
        "recovery": ({"unet": {"loss": {"steps_each": 1, "means": [3.0, 2.0, 1.5]}}}, "Loss while recovering"),
        "metrics": ({"lpips_alex": {"mean": 0.125, "median": 0.1, "interval_95": [0.1, 0.2]}}, "lpips alex"),
        "component_metrics": ({"unet": {"noise_sqnr_db": {"mean": 31.25}}}, "31.25"),
    }[optional]
    assert words not in to_html(report, tmp_path)
    assert words in to_html(report | {optional: value}, tmp_path)


def test_what_is_infinite_is_not_called_unmeasured(make_report: Make) -> None:
    """Pictures that are the original's to the pixel: in a swap, in the noise floor, and at a gate."""
    same = {"pictures": 4, "identical": 4, "psnr_db": {"mean": None}}
    report = make_report() | {
        "attribution": [{"name": "safety_checker", "kind": "component", **same}],
        "noise_floor": {"sources": {"batch": {"label": "in batches", **same}}},
        "gates": [{"gate": "psnr_db>=30", "value": None, "infinite": True, "passed": True}],
    }
    assert attribution_rows(report)[0][2] == "identical"
    assert floor_rows(report) == [("in batches", "not measured", "identical", "not measured")]
    assert gate_rows(report)[0]["value"] == "infinite"


def test_pictures_are_lossless_where_they_fit(make_report: Make, save_pictures: Save, tmp_path: Path) -> None:
    report = make_report(count=3)
    save_pictures(report, tmp_path)
    pictures, encoding = embed_pairs(report["samples"], tmp_path)
    assert encoding is ENCODINGS[0] and sorted(pictures) == [0, 1, 2]
    uri = pictures[1]["compressed"]
    shown = Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB")
    saved = Image.open(tmp_path / report["samples"][1]["compressed"]["picture"]).convert("RGB")
    assert np.array_equal(np.asarray(shown), np.asarray(saved))


def test_pictures_keep_to_their_bytes(make_report: Make, tmp_path: Path) -> None:
    report = make_report(count=4)
    generator = np.random.default_rng(0)
    for sample in report["samples"]:
        for side in ("original", "compressed"):
            file = tmp_path / sample[side]["picture"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(file)
    pictures, encoding = embed_pairs(report["samples"], tmp_path, most_bytes=120_000)
    assert encoding is not None and encoding.quality is not None
    assert (
        sum(len(uri) for pair in pictures.values() for uri in pair.values()) <= 120_000 * 4 / 3 + 8 * 40
    )  # base64, heads


def test_two_hundred_prompts_stay_under_15_mb(make_report: Make, tmp_path: Path) -> None:
    """Issue 6's bound, where pictures are noise, prompts have 2,000 characters and layers are many."""
    report = make_report(count=200)
    generator = np.random.default_rng(0)
    for sample in report["samples"]:
        sample["prompt"] = f"{sample['prompt']} {'<long> ' * 285}"
        for side in ("original", "compressed"):
            file = tmp_path / sample[side]["picture"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(file, compress_level=0)
    report["compressed"]["layers"] *= 750
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
