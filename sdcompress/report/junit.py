"""Gates as JUnit XML, which continuous integration shows as tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from sdcompress.planning.gates import gate_value_text


def to_junit(report: Mapping[str, Any]) -> str:
    """One test case for each gate of the report, failed where the gate failed."""
    gates = report["gates"]
    failed = sum(not each["passed"] for each in gates)
    counts = {"tests": str(len(gates)), "failures": str(failed), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", {"name": "sdcompress gates", **counts})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": str(report["compressed"]["name"]), **counts})
    for each in gates:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "gates", "name": each["gate"]})
        if not each["passed"]:
            words = {"message": gate_value_text(each), "type": "gate"}
            ElementTree.SubElement(case, "failure", words).text = f"{each['gate']}: {gate_value_text(each)}"
        ElementTree.SubElement(case, "system-out").text = gate_value_text(each)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
