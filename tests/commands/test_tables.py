"""Printed tables as text, LaTeX and comma-separated values, against what is written out here."""

import csv

import pytest

from ntkcollapse._table import Table, printed_as
from ntkcollapse.cli import main

ROWS = [["1  block kernel_x", "1.23e-05", "x13", "13.1 ± 0.6"], ["a & b, 5%", "-0.5", "-", "0.1 to 2"]]
HEADER = ["until step", "R_class-R_global", "κ_c/κ_d", "|R|²"]


def test_latex():
    made = Table(HEADER, ROWS, "of 5%\nand more").to_latex().splitlines()
    assert made == [
        "% of 5%",
        "% and more",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"until step & $R_{\mathrm{class}}$-$R_{\mathrm{global}}$ & "
        r"$\kappa_{\mathrm{c}}$/$\kappa_{\mathrm{d}}$ & $|$R$|^2$ \\",
        r"\midrule",
        r"1  block kernel\_x & $1.23 \cdot 10^{-5}$ & $\times$13 & 13.1 $\pm$ 0.6 \\",
        r"a \& b, 5\% & $-$0.5 & - & 0.1 to 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_comma_separated_values():
    rows = list(csv.reader(Table(HEADER, ROWS, "of 5%").to_csv().splitlines()))
    assert rows == [HEADER, *ROWS, ["# of 5%"]]


def test_every_table_that_a_command_prints(tmp_path, capsys):
    simulate = ["simulate", "--times", "10", "--until", "1", "--features", "4", "--per-class", "2"]
    assert main([*simulate, "--out", str(tmp_path), "--tables", "latex"]) == 0
    assert capsys.readouterr().out.count(r"\end{tabular}") == 2
    with pytest.raises(SystemExit):
        main([*simulate, "--tables", "html"])
    with pytest.raises(ValueError, match="tables: expected one of 'text', 'latex', 'csv'"), printed_as("tex"):
        pass
