"""What the graph passes did to an exported pipeline, as lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def graph_lines(manifest: Mapping[str, Any]) -> list[str]:
    """One line for each exported graph: its passes with the places they changed; none for a torch artifact."""
    lines = []
    for entry in manifest["components"].values():
        for folder, passes in entry.get("graphs", {}).items():
            done = (
                f"{each['name']} {each['matched']}"
                + ("" if each["matched"] == each["candidates"] else f" of {each['candidates']}")
                for each in passes
                if each["candidates"]
            )
            lines.append(f"{folder}: {', '.join(done) or 'nothing to rewrite'}")
    return lines
