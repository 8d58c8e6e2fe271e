"""The README's own example runs as it stands."""

import re
from pathlib import Path

from ntkcollapse.cli import build_parser

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_ten_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    loss, nc1, drift = map(float, capsys.readouterr().out.split())
    # Interpolated (from about 800), collapsed, conserved to the tolerance of the default solver.
    assert loss < 10
    assert nc1 < 1
    assert drift < 1e-4
    assert (tmp_path / "runs" / "first" / "trajectory.nc").exists()


def test_commands_exist_with_their_flags():
    """Every `ntkcollapse` line of the README is understood by the parser, flags and choices included."""
    lines = re.findall(r"^ntkcollapse (.*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        build_parser().parse_args(line.split())
