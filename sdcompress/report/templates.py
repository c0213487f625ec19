"""Templates to self-contained HTML: style and scripts inline, nothing from a network, everything else escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdcompress.report.table import Table

FOLDER = Path(__file__).parent / "page"
# A page is opened from a disk by whoever was sent it: only our own style and scripts may run, and nothing is fetched.
POLICY = (
    "default-src 'none'; img-src data:; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'"
)


def render_page(template: str, scripts: tuple[str, ...], data: dict[str, Any], **values: Any) -> str:
    """Return the page. `data` reaches the scripts as JSON; `values` reach the template, escaped unless `Markup`."""
    from markupsafe import Markup

    style = _read("page.css")
    script = "\n".join(_read(name) for name in scripts)
    policy = POLICY.format(style=_source(style), script=_source(script))
    return render_fragment(
        template,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=Markup(json_island(data)),
        **values,
    )


def render_fragment(template: str, **values: Any) -> str:
    """Return the filled template. Charts are SVG that escaped its texts itself; all else is escaped here."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page: str = environment.get_template(template).render(**values)
    return page


def render_tables(
    command: str,
    title: str,
    subject: str,
    groups: Sequence[tuple[str, str, Sequence[tuple[str, str]], Table]],
    warnings: Sequence[str] = (),
) -> str:
    """Return a page of tables: the title, note, charts and table of each group."""
    named = [{"title": name, "note": note, "charts": charts} for name, note, charts, _ in groups]
    data = {str(place): table.to_data() for place, (*_, table) in enumerate(groups)}
    texts = {"command": command, "title": title, "subject": subject, "warnings": warnings}
    return render_page("tables.html.j2", ("table.js", "tables.js"), data, groups=named, **texts)


def write_json(file: Path, value: Any) -> None:
    """Write a report, a comparison or a history as strict JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def json_island(value: Any) -> str:
    """Return JSON that may stand inside a <script> element: nothing in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
