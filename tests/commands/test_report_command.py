"""The report: one file that needs nothing else, and a browser agrees where one is installed."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from ntkcollapse import LastLayer, Trajectory, collapse
from ntkcollapse.cli import main
from ntkcollapse.collapse import ClassStatistics
from ntkcollapse.commands._collapse_sections import last_layer_metrics
from ntkcollapse.comparison import save_ladders
from ntkcollapse.equation import Equation
from ntkcollapse.observable_table import described
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
        equation=Equation(producer="network"),
        settings={"note": "<script>alert(1)</script>"},
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
    # Settings and versions open on a click; the verdict stands before everything that is drawn.
    assert page.tags.count("details") == 2
    assert page.tags.index("ul") < page.tags.index("img")
    said = " ".join(page.text)
    assert "Collapse along depth" not in said
    for words in (
        "The ladder, from step 1",
        "block structure",
        "How to cite",
        "jax",
        "The three rates",
        "Not measured: last_layer",
        "optimiser step",
        "theory (block kernel, frozen) within 10%",
    ):
        assert words in said


def kept(state: LastLayer, **settings) -> Trajectory:
    """A run of one record that kept its last layer."""
    states = LastLayer.stacked(*(np.asarray(value)[None] for value in (state.H, state.W, state.b)))
    return Trajectory(TIMES[:1], {"epoch": np.zeros(1)}, CLASSES, states=states, settings=settings)


def test_every_metric_of_the_last_state_with_its_source():
    """The bias decides for the first class everywhere: a mismatch of 2/3 with it, and none without."""
    state = LastLayer(H=np.repeat(np.eye(3), 4, axis=1), W=np.eye(3), b=np.array([5.0, 0.0, 0.0]))
    values = last_layer_metrics(kept(state))
    assert values["nc4_mismatch"] == pytest.approx(2 / 3)
    assert values["nc4_mismatch_without_bias"] == 0
    assert values["ncc_accuracy"] == 1
    assert values["nc2_seleznova2023"] == pytest.approx(0, abs=1e-14)
    assert values["fisher_ratio_zarka2021"] == np.inf
    measured = collapse.measure(ClassStatistics.from_columns(state.H, CLASSES), state.W)
    assert {name: values[name] for name in measured} == measured
    for name in values:
        assert described(name).source, name


@pytest.mark.drawn
def test_sections_of_what_a_run_measured(tmp_path):
    flags = (
        "--network mlp --network-options widths=(10,) --dataset digits --per-class 12 --test-per-class 3 --epochs 1 "
    )
    flags += "--batch-size 30 --probe-per-class 2 --measure test-collapse layers ansatz --out"
    folder = tmp_path / "run"
    assert main(["train", *flags.split(), str(folder)]) == 0
    assert {p.stem for p in (folder / "figures").iterdir()} == {"layers", "test_collapse", "ansatz"}
    assert main(["report", str(folder)]) == 0
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert not page.open
    said = " ".join(page.text)
    # One heading and one cell of the table of each section.
    for words in (
        "Collapse at the end, by source",
        "nc2_maximal_angle_papyan2020_of_weights",
        "Collapse along depth",
        "strong_nc1_tirer2022, test",
        "Collapse on test data",
        "weak, test",
        "The neural feature ansatz",
    ):
        assert words in said
    on_test_data = said.split("Collapse on test data")[1].split("The neural feature ansatz")[0]
    for metric in ("nc1_papyan2020", "ncc_accuracy", "nc4_mismatch"):
        assert metric in on_test_data


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
