"""cni conform: its JUnit report."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from cni.cli.conform.command import Outcome, junit_of


def test_junit_is_xml_whatever_a_plugin_prints() -> None:
    text = "got <a href=\"x\"> & 'b'\x01\n"
    outcomes = [
        Outcome("life", "1.0.0", "failed", text),
        Outcome("gc", "1.1.0", "skipped", "no reason"),
        Outcome("version", "", "passed", ""),
    ]
    suite = ET.fromstring(junit_of(outcomes, 'a & "b"').encode())
    assert suite.attrib == {"name": 'a & "b"', "tests": "3", "failures": "1", "skipped": "1"}
    assert [each.get("name") for each in suite] == ["life 1.0.0", "gc 1.1.0", "version"]
    assert suite[0][0].get("message") == "got <a href=\"x\"> & 'b'  "
    assert suite[1][0].tag == "skipped"
