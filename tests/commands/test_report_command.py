"""The report: one file that needs nothing else, and a browser agrees where one is installed."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from ntkcollapse import Trajectory
from ntkcollapse.cli import main
from ntkcollapse.comparison import save_ladders
from tests.comparison.test_files_and_attribution import CLASSES, TIMES, ladder

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags in balance, everything that a browser would load, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.loaded, self.text, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run<1>")
    compared = ladder(block_frozen=4.0, sample_frozen=1.5, network_flow=1.1)
    run = Trajectory(
        TIMES,
        compared.network.observables,
        CLASSES,
        settings={"producer": "network", "note": "<script>alert(1)</script>"},
    )
    run.save(folder)
    save_ladders(folder, {1: compared})
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


def test_report_is_one_balanced_file_that_loads_nothing(report):
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert page.loaded, "the figures are images inside the page"
    assert all(value.startswith("data:image/png;base64,") for value in page.loaded)
    assert not re.search(r"url\(|@import|<script|<link|<iframe", text)
    assert "script" not in page.tags
    said = " ".join(page.text)
    for words in (
        "The ladder, from step 1",
        "block structure",
        "How to cite",
        "jax",
        "The three rates",
        "optimiser step",
    ):
        assert words in said


def test_report_does_not_replace_silently(report, capsys):
    assert main(["report", str(report.parent)]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main(["report", str(report.parent / "nowhere")]) == 2
    assert main(["report"]) == 2
    assert "expected a run directory" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no headless browser")
def test_report_renders_in_a_browser_without_a_connection(report, tmp_path):
    shot = tmp_path / "page.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9"]
    command += [f"--screenshot={shot}", "--window-size=1100,3000", report.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from matplotlib.image import imread

    pixels = imread(shot)[..., :3]
    # Not a blank page: text and figures leave a good part of it other than white.
    assert np.mean(pixels.min(axis=-1) < 0.95) > 0.02
