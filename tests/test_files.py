"""Files that are replaced whole."""

import os
import stat

import pytest

from ntkcollapse._files import replacing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "run.txt"
    for text in ("old", "new"):
        with replacing(file) as part:
            part.write_text(text)
            assert not file.exists() or file.read_text() == "old"
        assert file.read_text() == text
    with pytest.raises(OSError, match="full"):
        _half(file)
    assert file.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run.txt"]


def test_what_a_killed_writer_left_is_written_over_by_the_next(tmp_path):
    file = tmp_path / "run.txt"
    with replacing(file, "part") as part:
        part.write_text("whole")
    # A process that is killed does not tidy up.
    part.write_text("half of somebody else's")
    with replacing(file, "part") as again:
        again.write_text("new")
    assert again == part
    assert [p.name for p in tmp_path.iterdir()] == ["run.txt"]
    assert file.read_text() == "new"


def _half(file):
    with replacing(file) as part:
        part.write_text("half")
        raise OSError("full")


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "run.txt") as part:
            part.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.txt").stat().st_mode) == 0o640
