"""What compressing tiny-sd takes of memory, by Linux's account of a fresh process."""

import subprocess
import sys
from pathlib import Path

SCRIPT = (
    "import sys; from pathlib import Path\n"
    "from sdcompress import load_recipe, open_source\nfrom sdcompress.planning.plan import make_plan\n"
    "from sdcompress.execution.execute import execute\n"
    "plan = make_plan(load_recipe(sys.argv[1]), open_source('tiny-sd'))\n"
    "execute(plan, Path(sys.argv[2]))\n"
    "status = Path('/proc/self/status').read_text()\n"
    "print(plan.peak_bytes, int(status.split('VmHWM:')[1].split()[0]) * 1024)\n"
)


def planned_and_taken_bytes(recipe: str, out: Path) -> tuple[int, int]:
    """The peak that the plan predicts, and VmHWM of the process that carried it out."""
    command = [sys.executable, "-c", SCRIPT, recipe, str(out)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    predicted, actual = map(int, answer.stdout.split()[-2:])
    return predicted, actual
