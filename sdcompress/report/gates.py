"""Gates checked against a report, and as JUnit XML, which continuous integration shows as tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from sdcompress.planning.gates import FIGURES, Gate, parse_gate
from sdcompress.report.model import GateResult, ReportData


def check_gates(report: ReportData, gates: Sequence[str]) -> list[GateResult]:
    """Return for each gate, such as `psnr_db>=30`, what was measured and whether it passed.

    The value of an infinite PSNR (identical pictures) is None, as everywhere in a report, and `infinite` is True.
    """
    return [_check(report, parse_gate(text)) for text in dict.fromkeys(gates)]


def value_text(result: GateResult) -> str:
    """Return the measured value."""
    if result.value is None:
        return "infinite" if result.infinite else "not measured"
    return f"{result.value:.6g}"


def sentence(result: GateResult) -> str:
    """Return `measured 42`, or why there is no value."""
    return value_text(result) if result.value is None else f"measured {value_text(result)}"


def failures(results: Sequence[GateResult]) -> list[str]:
    """Return a line for each gate that failed."""
    return [f"gate {each.gate}: {sentence(each)}" for each in results if not each.passed]


def to_junit(report: ReportData) -> str:
    """Return one test case for each gate of the report, failed where the gate failed."""
    failed = sum(not each.passed for each in report.gates)
    counts = {"tests": str(len(report.gates)), "failures": str(failed), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", {"name": "sdcompress gates", **counts})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": report.compressed.name, **counts})
    for each in report.gates:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "gates", "name": each.gate})
        told = sentence(each)
        if not each.passed:
            ElementTree.SubElement(case, "failure", {"message": told, "type": "gate"}).text = f"{each.gate}: {told}"
        ElementTree.SubElement(case, "system-out").text = told
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _check(report: ReportData, gate: Gate) -> GateResult:
    value: Any = report
    for key in FIGURES[gate.name]:
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    if value is None and gate.name.startswith("psnr_db") and report.similarity.all_identical:
        passed = gate.passes(float("inf"))
        return GateResult(gate=gate.text, value=None, passed=passed, infinite=True)
    passed = value is not None and gate.passes(value)
    return GateResult(gate=gate.text, value=value, passed=passed)
