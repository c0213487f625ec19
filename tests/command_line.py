"""The command line as a user meets it: in a process of its own, or, where only a refusal is wanted, in this one."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest

from sdcompress.cli.main import main


def sdcompress(*arguments, env=None):
    """Return what the command wrote, and its exit code."""
    command = [sys.executable, "-m", "sdcompress", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=250)


def refused(*arguments, says):
    """Check for exit code 2, a message on stderr, and nothing on stdout."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["sdcompress", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert ended.value.code == 2, err.getvalue()
    assert out.getvalue() == ""
    assert says in " ".join(err.getvalue().split()), err.getvalue()
