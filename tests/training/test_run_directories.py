"""Who may write into a run directory, and what a call that did not start a run leaves there."""

import pytest

from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import RunInUse, saved_config, train
from tests.training.settings import small


def test_a_run_in_progress_is_not_overwritten(tmp_path):
    out = tmp_path / "run"
    train(small(epochs=1), out)
    before = (out / "config.toml").read_bytes()
    with RunDirectory(out).locked("train"), pytest.raises(RunInUse, match="`ntkcollapse train`, process"):
        train(small(epochs=1, learning_rate=0.1), out, overwrite=True)
    assert (out / "config.toml").read_bytes() == before
    assert (out / "trajectory.nc").exists()


def test_settings_that_are_refused_do_not_occupy_the_directory(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 10 classes"):
        train(small(batch_size=33), out)
    assert not out.exists()
    train(small(epochs=1), out)
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 10 classes"):
        train(small(batch_size=33), out, overwrite=True)
    assert saved_config(out) == small(epochs=1)
    assert (out / "trajectory.nc").exists()


def test_hidden_files_do_not_make_a_directory_used(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    train(small(epochs=1), tmp_path)
    assert saved_config(tmp_path) == small(epochs=1)


def test_refused_directories_are_left_as_they_were(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="found one in use"):
        train(small(epochs=1), tmp_path)
    with pytest.raises(ValueError, match=r"expected a run directory with config\.toml"):
        train(small(epochs=1), tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_starts_anew(tmp_path):
    train(small(epochs=2), tmp_path / "run")
    run = train(small(epochs=1), tmp_path / "run", overwrite=True)
    assert run["step"].tolist() == [0, 8]
    assert saved_config(tmp_path / "run") == small(epochs=1)


def test_only_runs_are_overwritten(tmp_path):
    """Somebody else's checkpoints, in a folder that holds no run."""
    kept = tmp_path / "checkpoints" / "mine.bin"
    kept.parent.mkdir()
    kept.write_text("")
    with pytest.raises(FileExistsError, match="expected a run to overwrite, found other files"):
        train(small(epochs=1), tmp_path, overwrite=True)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [kept]


def test_what_was_made_of_the_run_before_goes_with_it(tmp_path):
    out = tmp_path / "run"
    train(small(epochs=1), out)
    made = [out / "comparison.nc", out / "report.html", out / "figures" / "training.png"]
    made[2].parent.mkdir()
    for file in made:
        file.write_text("")
    train(small(epochs=1), out, resume=True)
    assert all(file.exists() for file in made)
    train(small(epochs=1, seed=1), out, overwrite=True)
    assert not any(file.exists() for file in made)
