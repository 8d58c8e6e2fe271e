"""Commands that are killed twenty times end in the bits of one that was not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "sweep", "compare", "kernel"])
def test_killed_twenty_times(kind, tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    program = [sys.executable, "-m", "tests.killed_commands", kind, str(tmp_path / "runs"), "20", "1"]
    (tmp_path / "runs").mkdir()
    done = subprocess.run(program, cwd=ROOT, env=os.environ | cache, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("bits identical\n")
    print(done.stdout)
