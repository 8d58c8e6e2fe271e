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
