"""compare, on its own digits and on a run that is there; its errors."""

import dataclasses
import os
import re
import shutil
import signal

import equinox as eqx
import numpy as np
import pytest

from ntkcollapse import Trajectory
from ntkcollapse.cli import main
from ntkcollapse.commands import compare, network_runs
from ntkcollapse.commands.compare import _lacking
from ntkcollapse.commands.network_runs import (
    can_be_trained_again,
    compared_steps,
    load_network_run,
    measured_run,
    train_again,
    training_settings,
)
from ntkcollapse.commands.settings import CompareConfig
from ntkcollapse.comparison import Ladder, joined, load_ladders, save_ladders
from ntkcollapse.networks import mlp
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import Interrupted, TrainConfig, preset, train

SMALL = dataclasses.replace(preset("digits"), per_class=2, network_options=("widths=(8,10)",), epochs=40, measure_log=4)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "run"
    train(SMALL, folder, keep_networks_at=[5])
    assert main(["compare", str(folder), "--from", "5", "--rungs", "sample-frozen"]) == 0
    return folder


def test_compare_leaves_a_run_a_comparison_and_figures(compared):
    names = {str(file.relative_to(compared)) for file in compared.rglob("*") if file.is_file()}
    assert {"config.toml", "trajectory.nc", "comparison.nc", "figures/ladder_5.png", "figures/ladder_5.pdf"} <= names
    ladder = load_ladders(compared)[5]
    network, rung = ladder.network, ladder.rungs["sample-frozen"]
    # They start from the same state: what was measured at step 5 in single precision.
    assert int(network["step"][0]) == 5
    np.testing.assert_allclose(rung["loss"][0], network["loss"][0], rtol=1e-12)
    assert 0 < float(rung["loss"][-1]) < float(rung["loss"][0])


def test_the_second_of_two_is_refused_and_loses_nothing(compared, capsys):
    before = (compared / "comparison.nc").read_bytes()
    command = ["compare", str(compared), "--from", "8", "--rungs", "block-frozen"]
    with RunDirectory(compared).locked("compare"):
        assert main(command) == 1
        said = f"{compared}: expected .* `ntkcollapse compare`, process {os.getpid()} on .* name another directory"
        assert re.search(said, capsys.readouterr().err)
    assert (compared / "comparison.nc").read_bytes() == before


def test_without_a_run_the_preset_is_trained_and_then_compared(compared, tmp_path, monkeypatch, capsys):
    """The same run and the same ladder as by `train` and `compare RUN`; its network is kept, and not trained twice."""
    monkeypatch.setattr(compare, "preset", lambda name: SMALL)
    monkeypatch.setattr(network_runs, "train", _no_training)
    folder = tmp_path / "run"
    assert main(["compare", "--from", "5", "--rungs", "sample-frozen", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "trained again" not in out
    one, other = load_ladders(folder)[5], load_ladders(compared)[5]
    np.testing.assert_array_equal(one.rungs["sample-frozen"]["loss"], other.rungs["sample-frozen"]["loss"])
    np.testing.assert_array_equal(one.network["loss"], other.network["loss"])
    np.testing.assert_array_equal(one.network["loss"], Trajectory.load(folder)["loss"][2:])
    assert training_settings(folder) == SMALL
    # What is there is not replaced unasked.
    assert main(["compare", "--from", "5", "--out", str(folder)]) == 2
    assert "expected a new or empty run directory" in capsys.readouterr().err


def test_a_run_is_trained_again_only_for_what_it_lacks(compared, monkeypatch, capsys):
    monkeypatch.setattr(network_runs, "train", _no_training)
    run = load_network_run(compared)
    steps = run["step"].tolist()
    assert measured_run(compared, run, at=steps).steps == steps
    kept = measured_run(compared, run, at=[5, steps[-1]], networks_at=[5])
    assert (kept.steps, list(kept.networks)) == ([5, steps[-1]], [0])
    bare = run.replaced(states=None)
    more = {"equation": dataclasses.replace(run.equation, training_classes=run.classes.balanced(10, 9))}
    for given, at, networks_at, said in (
        (run, [5, 16], [5], "it was not measured at step 16"),
        (run, steps, [0, 5], "its network was not kept at step 0"),
        (bare, steps, [], "it kept no states"),
        (run.replaced(**more), steps, [], "it was measured on 20 of its 90 samples"),
    ):
        with pytest.raises(AssertionError, match="nothing is to be trained"):
            measured_run(compared, given, at=at, networks_at=networks_at)
        assert f"trained again to be compared, since {said}" in capsys.readouterr().out
    monkeypatch.setattr(network_runs, "has_batch_norm", lambda config: True)
    with pytest.raises(AssertionError, match="nothing is to be trained"):
        measured_run(compared, run, at=steps)
    assert "its batch statistics were not those of its whole training set" in capsys.readouterr().out


def test_settings_of_a_comparison_that_trained_its_own_network_are_understood(compared, tmp_path):
    """Directories that `compare` of earlier versions left."""
    (tmp_path / "config.toml").write_text(
        "starts = [5]\nrungs = []\nrecords = 24\nhomogeneity = 0.0\nper_class = 2\nwidths = [8, 10]\n"
        "learning_rate = 0.3\nsteps = 40\nmeasurements = 4\nseed = 0\n"
    )
    shutil.copyfile(compared / "trajectory.nc", tmp_path / "trajectory.nc")
    assert dataclasses.replace(training_settings(tmp_path), measure_log=4) == SMALL
    assert main(["compare", str(tmp_path), "--from", "5", "--rungs", "class-pairs"]) == 0
    assert list(load_ladders(tmp_path)[5].rungs) == ["class-pairs"]


def test_a_comparison_goes_on_where_it_stopped(compared, tmp_path, capsys):
    """Rungs and starts are added to those that are there; what is there is neither climbed again nor lost."""
    folder = tmp_path / "run"
    shutil.copytree(compared, folder)
    before, old = Trajectory.load(folder), load_ladders(folder)[5]
    arguments = ["compare", str(folder), "--from", "5", "--rungs"]
    assert main([*arguments, "sample-frozen"]) == 0
    out = capsys.readouterr().out
    assert "within 10% until step" in out
    assert "all of it was there already; --overwrite climbs again" in out
    assert main([*arguments, "block-frozen", "sample-frozen"]) == 0
    assert "there already" not in capsys.readouterr().out
    assert main(["compare", str(folder), "--from", "5", "16", "--rungs", "block-frozen"]) == 0
    ladders = load_ladders(folder)
    assert {step: list(ladder.rungs) for step, ladder in ladders.items()} == {
        5: ["block-frozen", "sample-frozen"],
        16: ["block-frozen"],
    }
    assert (folder / "figures" / "ladder_16.png").exists()
    new = ladders[5]
    np.testing.assert_array_equal(new.rungs["sample-frozen"]["loss"], old.rungs["sample-frozen"]["loss"])
    np.testing.assert_array_equal(new.network["step"], old.network["step"])
    # Both rungs start from what was measured.
    assert float(new.rungs["block-frozen"]["loss"][0]) == pytest.approx(float(new.network["loss"][0]), rel=1e-6)
    np.testing.assert_array_equal(Trajectory.load(folder)["loss"], before["loss"])

    # What was climbed under other assumptions does not stand in one ladder, whichever rung is asked for.
    assert main([*arguments, "class-pairs", "--homogeneity", "1"]) == 2
    assert "homogeneity: expected 0, of the rungs that are there, got 1" in capsys.readouterr().err
    # Another state than the one that the ladder starts from.
    shifted = Trajectory(new.network.times, new.network.observables | {"loss": 2 * new.network["loss"]}, before.classes)
    save_ladders(folder, {5: Ladder(shifted, new.rungs, {})})
    assert main([*arguments, "block-path"]) == 2
    assert "its comparison starts from a loss of" in capsys.readouterr().err

    # Climbed again, the other starts and their figures go.
    assert main([*arguments, "sample-frozen", "--overwrite"]) == 0
    ladders = load_ladders(folder)
    assert list(ladders) == [5]
    np.testing.assert_allclose(ladders[5].rungs["sample-frozen"]["loss"], old.rungs["sample-frozen"]["loss"], rtol=1e-6)
    assert not (folder / "figures" / "ladder_16.png").exists()


def test_a_comparison_in_another_folder(compared, tmp_path, capsys):
    arguments = ["compare", str(compared), "--from", "5", "--rungs", "block-frozen", "--out"]
    assert main([*arguments, str(tmp_path / "a")]) == 0
    assert {"config.toml", "trajectory.nc", "comparison.nc"} <= {f.name for f in (tmp_path / "a").iterdir()}
    assert main([*arguments, str(tmp_path / "a")]) == 0
    assert "all of it was there already" in capsys.readouterr().out
    # Stopped before its first rung was saved, it goes on too.
    (tmp_path / "a" / "comparison.nc").unlink()
    assert main([*arguments, str(tmp_path / "a")]) == 0
    other = Trajectory.load(tmp_path / "a")
    moved = eqx.tree_at(lambda states: states.W, other.states, other.states.W + 1)
    other.replaced(states=moved).save(tmp_path / "a", overwrite=True)
    before = (tmp_path / "a" / "comparison.nc").read_bytes()
    assert main([*arguments, str(tmp_path / "a")]) == 2
    assert "a: holds another run than this one" in capsys.readouterr().err
    assert (tmp_path / "a" / "comparison.nc").read_bytes() == before


def test_a_rung_that_failed_is_tried_again_where_it_is_named(compared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(compared, folder)
    held = load_ladders(folder)[5]
    save_ladders(folder, {5: Ladder(held.network, {}, {"block-frozen": "why", "block-path": "why"})})
    assert main(["compare", str(folder), "--from", "5", "--rungs", "block-frozen"]) == 0
    ladder = load_ladders(folder)[5]
    assert list(ladder.rungs) == ["block-frozen"]
    assert ladder.failures == {"block-path": "why"}
    config = CompareConfig(run=str(folder), rungs=("all",))
    assert "block-path" not in _lacking(ladder, ("block-frozen", "block-path", "sample-frozen"), config)
    assert _lacking(ladder, ("block-path",), CompareConfig(run=str(folder), rungs=("block-path",))) == ("block-path",)
    # A part of a rung gives way to the whole of it.
    short = Ladder(
        ladder.network, {"block-frozen": ladder.rungs["block-frozen"].at_records([0])}, {"block-frozen": "early"}
    )
    whole = joined(short, Ladder(ladder.network, ladder.rungs, {}))
    assert len(whole.rungs["block-frozen"].times) == len(ladder.network.times)
    assert whole.failures == {}


def test_a_run_of_ones_own_network_is_compared_as_it_was_recorded(tmp_path, capsys):
    """Its settings do not make it again, so that only the rungs of the block kernel can be climbed."""
    config = TrainConfig(
        dataset="digits", per_class=4, epochs=6, batch_size=0, probe_per_class=0, measure=("kappa", "last-layer"),
        decay_every=0, momentum=0.0, nesterov=False,
    )  # fmt: skip
    train(config, tmp_path / "run", network=mlp((12,), 10))
    arguments = ["compare", str(tmp_path / "run"), "--from", "1"]
    assert main([*arguments, "--rungs", "sample-frozen"]) == 2
    assert "name rungs that need none: --rungs block-frozen block-path" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "run"), "--from", "7", "--rungs", "block-frozen"]) == 2
    assert "start: expected a step" in capsys.readouterr().err
    shutil.copytree(tmp_path / "run", tmp_path / "sparse")
    Trajectory.load(tmp_path / "run").at_records([0, 2, 6]).save(tmp_path / "sparse", overwrite=True)
    assert main(["compare", str(tmp_path / "sparse"), "--from", "1"]) == 2
    assert (
        "expected a recorded step of a run that cannot be made again, among 0, 2, 6; got [1]" in capsys.readouterr().err
    )
    assert main(arguments) == 0
    ladder = load_ladders(tmp_path / "run")[1]
    assert list(ladder.rungs) == ["block-frozen", "block-path"]
    recorded = Trajectory.load(tmp_path / "run")
    np.testing.assert_array_equal(ladder.network["loss"], recorded["loss"][1:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "40"], "start: expected a step from 0 to below steps = 40, got 40"),
        (["--rungs", "rung-9"], "rungs: expected one of"),
        (["--records", "0"], "records: expected"),
        (["--homogeneity", "-1"], "homogeneity: expected"),
        (["--preset", "digit"], "preset: expected one of"),
        (
            ["--rungs", "block-frozen", "features-coupled"],
            "'features-coupled' of a network with batch normalisation only",
        ),
    ],
)
def test_bad_input(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "train", _no_training)
    if "--preset" not in arguments:
        monkeypatch.setattr(compare, "preset", lambda name: SMALL)
    start = [] if "--from" in arguments else ["--from", "5"]
    assert main(["compare", *start, *arguments, "--out", str(tmp_path / "x")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def _no_training(*args, **options):
    raise AssertionError("nothing is to be trained")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "40"], "start: expected a step from 0 to below steps = 40, got 40"),
        (["--seed", "7"], "seed: expected none here, got 7: a run has its own"),
        (["--rungs", "features-coupled"], "'features-coupled' of a network with batch normalisation only"),
    ],
)
def test_what_is_refused_costs_nothing_that_is_there(arguments, said, compared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(network_runs, "train", _no_training)
    other = tmp_path / "other"
    shutil.copytree(compared, other)
    (other / "report.html").write_text("a report")
    before = {file: file.read_bytes() for file in other.rglob("*") if file.is_file()}
    nowhere = said if "seed" in said else "no trajectory here"
    for target, message in (
        ([str(compared), "--out", str(other)], said),
        ([str(other)], said),
        ([str(tmp_path / "no"), "--out", str(other)], nowhere),
    ):
        assert main(["compare", *target, *arguments, "--overwrite"]) == 2
        assert message in capsys.readouterr().err
        assert {file: file.read_bytes() for file in other.rglob("*") if file.is_file()} == before


def test_the_runs_own_directory_by_another_name(compared, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(compared, folder)
    (tmp_path / "link").symlink_to(folder)
    arguments = ["compare", str(folder), "--from", "5", "--rungs", "block-frozen", "--overwrite", "--out"]
    before = (folder / "trajectory.nc").read_bytes()
    assert main([*arguments, str(tmp_path / "link")]) == 0
    assert (folder / "trajectory.nc").read_bytes() == before
    assert list(load_ladders(folder)[5].rungs) == ["block-frozen"]


def test_damaged_directories_say_what_is_damaged(compared, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(compared, folder)
    (folder / "config.toml").write_text("seed = 0\n")
    arguments = ["compare", str(folder), "--from", "5", "--rungs", "class-pairs"]
    assert main(arguments) == 2
    assert "config.toml: expected the settings of `train`" in capsys.readouterr().err
    (folder / "config.toml").write_text("seed = \n")
    assert main(arguments) == 2
    assert "config.toml: expected the settings of a run, could not read them" in capsys.readouterr().err
    (folder / "config.toml").unlink()
    assert main(arguments) == 2
    assert "without its config.toml" in capsys.readouterr().err
    # What needs no network is still there to be compared.
    assert main([*arguments[:-1], "block-path", "--overwrite"]) == 0
    assert list(load_ladders(folder)[5].rungs) == ["block-path"]
    file = folder / "comparison.nc"
    file.write_bytes(file.read_bytes()[:3000])
    for command in (["report", str(folder)], arguments):
        assert main(command) == 2
        assert "comparison.nc: expected a comparison that save_ladders wrote" in capsys.readouterr().err


def test_an_interrupted_run_is_made_again_as_far_as_it_came(tmp_path):
    config = TrainConfig(
        network="mlp", network_options=("widths=(9,)",), dataset="digits", per_class=4, epochs=100, batch_size=20,
        probe_per_class=0, measure=("kappa", "last-layer"), measure_every=0, measure_log=0,
        measure_steps=(4, 7), decay_every=0,
    )  # fmt: skip

    def stop(step: int) -> None:
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", on_step=stop)
    # Two steps an epoch: recorded at 0, 4 and 7 of 200, made again until the end of the fourth epoch.
    run = load_network_run(tmp_path / "run")
    steps = run["step"].tolist()
    assert steps == [0, 4, 7]
    again = train_again(tmp_path / "run", run, at=compared_steps(steps, 3), networks_at=[4])
    assert again.steps == [0, 4, 7, 8]
    # What `compare RUN --out` keeps of it is made again by its settings in turn: it is no run of data of one's own.
    assert can_be_trained_again(tmp_path / "run", again.trajectory)


def test_runs_that_cannot_be_compared(tmp_path, capsys):
    config = TrainConfig(
        network="mlp", network_options=("widths=(12,)",), dataset="digits", per_class=2, epochs=2, batch_size=0,
        probe_per_class=0, measure=("last-layer",), measure_every=1, measure_log=0, decay_every=0,
    )  # fmt: skip
    train(config, tmp_path / "bare")
    assert main(["compare", str(tmp_path / "bare")]) == 2
    assert "expected a run measured with kernels" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "nowhere")]) == 2
    assert "no trajectory here" in capsys.readouterr().err


def test_a_run_that_kept_its_network_is_not_trained_again(tmp_path, capsys, monkeypatch):
    """From the command line: kept at the start of the theory, measured on the whole training set."""
    out = str(tmp_path / "run")
    arguments = "train --network mlp --network-options widths=(8,10) --dataset digits --per-class 4 --test-per-class 1"
    arguments += " --epochs 12 --batch-size 0 --momentum 0 --no-nesterov --weight-decay 0 --decay-every 0"
    arguments += " --measure kappa gamma last-layer --probe-per-class 0 --keep-networks 3 --out"
    assert main([*arguments.split(), out]) == 0
    capsys.readouterr()
    monkeypatch.setattr("ntkcollapse.commands.network_runs.train", lambda *a, **k: pytest.fail("trained again"))
    assert main(["compare", out, "--from", "3", "--rungs", "block-frozen", "sample-frozen"]) == 0
    said = capsys.readouterr().out
    assert "trained again" not in said
    assert "sample kernel, frozen" in said
