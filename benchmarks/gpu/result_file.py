"""The result file of one part: JSON that is rewritten whenever something was measured, so that nothing is lost.

Its fields: `part`, `status` (`running`, `done`, `failed` or `timed out`), `errors` (what failed -> traceback),
`log_tail` (the last lines printed, unless all went well), `command`, `commit`, `started`, `ended`, `seconds`,
`limit_s`, `device`, `small`, `card` (name, driver and memory of each GPU, as nvidia-smi tells them), `environment`
(versions and processor) and `results`, whose content the part decides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_result(file: Path) -> dict[str, Any]:
    """Return the content of a result file; empty if it is not there or not JSON."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def write_result(file: Path, content: Mapping[str, Any]) -> None:
    """Write the file in one step: a reader sees the old content or the new one."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, file)
