"""Gates checked against a report, and what a build server gets."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

from sdcompress.planning.gates import FIGURES
from sdcompress.report import Report
from sdcompress.report.gates import check_gates, failures, to_junit

Make = Callable[..., Report]


def test_every_figure_is_in_a_report(make_report: Make) -> None:
    report = make_report(whole=True)
    optional = {"lpips", "ms_ssim", "peak_device_memory_ratio"}  # not measured there
    for name in FIGURES:
        (checked,) = check_gates(report, [f"{name}>=-1e9"])
        assert checked.passed is (name not in optional), name
        assert (checked.value is None) is (name in optional), name


def test_gates_pass_and_fail_at_their_limits(make_report: Make) -> None:
    report = make_report(count=5)  # PSNR of 40 to 44 dB, latencies halved
    checked = check_gates(report, ["psnr_db>=42", "psnr_db>42", "psnr_db_min<40", "latency_ratio<=0.5", "lpips<=1"])
    assert [each.passed for each in checked] == [True, False, False, True, False]
    assert failures(checked) == [
        "gate psnr_db>42: measured 42",
        "gate psnr_db_min<40: measured 40",
        "gate lpips<=1: not measured",
    ]


def test_identical_pictures_pass_any_lower_bound(make_report: Make) -> None:
    (checked,) = check_gates(make_report(identical=True), ["psnr_db>=100"])
    assert checked.model_dump() == {"gate": "psnr_db>=100", "value": None, "passed": True, "infinite": True}


def test_junit_counts_and_names_what_failed(make_report: Make, alter: Callable[..., Report]) -> None:
    root = ElementTree.fromstring(to_junit(alter(make_report(whole=True), {"compressed.name": 'a <"&> name'})))
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    suite = root.find("testsuite")
    assert suite is not None and suite.get("name") == 'a <"&> name'
    passed, failed = suite.findall("testcase")
    assert passed.find("failure") is None and failed.get("name") == "size_ratio<0.1"
    assert failed.find("failure").get("message").startswith("measured 0.5")
