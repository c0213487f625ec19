"""What the graph passes did to an exported pipeline, as lines for the terminal."""

from __future__ import annotations

from sdcompress.files.manifest import Manifest


def graph_lines(manifest: Manifest) -> list[str]:
    """Return a line for each exported graph: its passes with the places that they changed; none for torch."""
    lines = []
    for entry in manifest.components.values():
        for folder, passes in (entry.graphs or {}).items():
            done = (
                f"{each['name']} {each['matched']}"
                + ("" if each["matched"] == each["candidates"] else f" of {each['candidates']}")
                for each in passes
                if each["candidates"]
            )
            lines.append(f"{folder}: {', '.join(done) or 'nothing to rewrite'}")
    return lines
