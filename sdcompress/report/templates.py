"""Templates to self-contained pages: style and scripts inline, nothing from a network, everything else escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "page"
# A page is opened from a disk by whoever was sent it: only our own style and scripts may run, and nothing is fetched.
POLICY = (
    "default-src 'none'; img-src data:; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'"
)


def render_page(template: str, scripts: tuple[str, ...], data: dict[str, Any], **values: Any) -> str:
    """The page as HTML. `data` reaches the scripts as JSON; `values` reach the template, escaped unless `Markup`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = _read("page.css")
    script = "\n".join(_read(name) for name in scripts)
    policy = POLICY.format(style=_source(style), script=_source(script))
    return environment.get_template(template).render(
        policy=policy, style=Markup(style), script=Markup(script), data=Markup(json_island(data)), **values
    )


def json_island(value: Any) -> str:
    """JSON that may stand inside a <script> element: nothing in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
