"""Gates: what they say, what they are checked against, and what a build server gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sdcompress.errors import RecipeError, UserError
from sdcompress.planning.gates import FIGURES, check_gates, failures, parse_gate
from sdcompress.planning.recipe import dump_recipe, parse_recipe
from sdcompress.report.junit import to_junit

HEAD = "schema_version: 1\ndescription: d\ncomponents: {unet: [{cast: {dtype: float16}}]}\n"


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    import importlib.util

    # By its path: torch-fidelity installs a package named `tests`, which goes before this folder.
    spec = importlib.util.spec_from_file_location(
        "report_conftest", Path(__file__).parents[1] / "report" / "conftest.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._make_report


def test_a_gate_is_a_figure_a_comparison_and_a_number() -> None:
    gate = parse_gate(" clip_score_drift >= -0.3 ")
    assert (gate.name, gate.comparison, gate.limit) == ("clip_score_drift", ">=", -0.3)
    assert gate.text == "clip_score_drift>=-0.3"
    assert parse_gate("size_ratio<=6e-1").limit == 0.6
    with pytest.raises(UserError, match="no figure 'psnr'; did you mean"):
        parse_gate("psnr>=30")
    for text in ("psnr_db", "psnr_db==30", "psnr_db>=high", "psnr_db>=30 dB", ""):
        with pytest.raises(UserError, match="must be NAME>=NUMBER"):
            parse_gate(text)


def test_every_figure_stands_in_a_report(make_report: Callable[..., dict[str, Any]]) -> None:
    report = make_report()
    optional = {"lpips", "ms_ssim", "cmmd", "fid", "safety_agreement", "peak_device_memory_ratio"}  # not measured there
    for name in FIGURES:
        (checked,) = check_gates(report, [f"{name}>=-1e9"])
        assert checked["passed"] is (name not in optional), name
        assert (checked["value"] is None) is (name in optional), name


def test_gates_pass_and_fail_at_their_limits(make_report: Callable[..., dict[str, Any]]) -> None:
    report = make_report(count=5)  # PSNR of 40 to 44 dB, latencies halved
    checked = check_gates(report, ["psnr_db>=42", "psnr_db>42", "psnr_db_min<40", "latency_ratio<=0.5", "lpips<=1"])
    assert [each["passed"] for each in checked] == [True, False, False, True, False]
    assert failures(checked) == [
        "gate psnr_db>42: measured 42",
        "gate psnr_db_min<40: measured 40",
        "gate lpips<=1: not measured",
    ]


def test_identical_pictures_pass_any_lower_bound(make_report: Callable[..., dict[str, Any]]) -> None:
    (checked,) = check_gates(make_report(identical=True), ["psnr_db>=100"])
    assert checked == {"gate": "psnr_db>=100", "value": None, "passed": True, "infinite": True}


def test_junit_counts_and_names_what_failed(make_report: Callable[..., dict[str, Any]]) -> None:
    report = make_report()
    report["gates"] = check_gates(report, ["psnr_db>=30", "size_ratio<0.1"])
    report["compressed"]["name"] = 'a <"&> name'
    root = ElementTree.fromstring(to_junit(report))
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    suite = root.find("testsuite")
    assert suite is not None and suite.get("name") == 'a <"&> name'
    passed, failed = suite.findall("testcase")
    assert passed.find("failure") is None and failed.get("name") == "size_ratio<0.1"
    assert failed.find("failure").get("message").startswith("measured 0.5")


def test_recipes_hold_gates(tmp_path: Path) -> None:
    assert parse_recipe(HEAD, "old").gates == ()
    recipe = parse_recipe(HEAD + "gates: ['psnr_db >= 30', clip_score_drift>=-0.3]\n", "new")
    assert recipe.gates == ("psnr_db>=30", "clip_score_drift>=-0.3")
    assert parse_recipe(dump_recipe(recipe), "dumped") == recipe
    with pytest.raises(RecipeError, match=r"new: gates: .*no figure 'sise_ratio'; did you mean size_ratio"):
        parse_recipe(HEAD + "gates: [sise_ratio<=1]\n", "new")
