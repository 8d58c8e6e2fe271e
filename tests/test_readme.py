"""The README's own example runs as it stands."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkcollapse.cli import build_parser

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.drawn
def test_ten_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    space = {}
    exec(compile(example, "README.md", "exec"), space)
    nc1, nc2, nc3 = map(float, capsys.readouterr().out.split())
    # Collapsed: deviations decay at λ_single = 1 and at the weight decay of 1 at least, for a time of 20.
    assert nc1 < 1e-6
    assert nc2 < 1e-6
    assert nc3 < 1e-6
    assert (tmp_path / "collapse.png").stat().st_size > 0
    run = space["run"]
    # What is said of the figure: classified long before it collapses, and the invariant goes first.
    times = np.asarray(run.times)
    assert times[np.argmax(np.asarray(run["nc4_mismatch"]) == 0)] < 0.05
    gone = times[np.argmax(np.asarray(run["invariant_relative"]) < 0.5)]
    assert 2 < gone < 4
    assert float(run["nc1_tirer2022"][np.argmax(times > gone / 2)]) > 0.1


def test_commands_exist_with_their_flags():
    """Every `ntkcollapse` line of the README is understood by the parser, flags and choices included."""
    lines = re.findall(r"^ntkcollapse (.*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        build_parser().parse_args(line.split())
