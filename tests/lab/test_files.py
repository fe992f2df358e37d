import os

import pytest

from equipoise.lab.files import write_whole, written_whole


def test_the_file_is_the_old_one_until_all_of_the_new_one_is_there(tmp_path):
    path = tmp_path / "folder" / "report.md"
    write_whole(path, "before µ")
    with written_whole(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_text(encoding="utf-8") == "before µ"
    assert path.read_bytes() == b"after"
    assert os.listdir(path.parent) == ["report.md"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(tmp_path, error):
    path = tmp_path / "report.md"
    write_whole(path, "before")

    def write_half():
        with written_whole(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert os.listdir(tmp_path) == ["report.md"]
    assert path.read_text() == "before"


@pytest.mark.skipif(os.name != "posix", reason="a file has no such permissions here")
def test_others_may_read_it_as_any_file_of_the_user(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "report.md", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "report.md").stat().st_mode & 0o777 == 0o640
