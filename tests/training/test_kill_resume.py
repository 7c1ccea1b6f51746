"""The command line, killed for real: `scripts/kill_resume.py` in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_resume.py"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_leave_no_trace(tmp_path):
    command = [sys.executable, str(SCRIPT), "--kills", "20", "--folder", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills" in done.stdout
