import errno
import json
import os

import pytest

from runtime.contract.errors import SinkError
from runtime.contract.files import replacing, write_bytes, write_json


def write_half(path, error):
    with replacing(path) as temporary:
        temporary.write_text("half of")
        raise error


def test_write_replaces_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"turn": 1})
    write_json(path, {"turn": 2})
    assert json.loads(path.read_text()) == {"turn": 2}


def test_write_makes_missing_folders(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"x")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"x"


def test_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(RuntimeError):
        write_half(path, RuntimeError())
    assert path.read_text().split() == ["[", "1", "]"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "cure"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")],
    ids=["disk full", "read-only", "no permission"],
)
def test_system_errors_name_the_file_and_the_cure(tmp_path, number, cure):
    path = tmp_path / "a.json"
    with pytest.raises(SinkError, match=cure) as caught:
        write_half(path, OSError(number, os.strerror(number)))
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_writing_over_a_folder_is_an_error(tmp_path):
    with pytest.raises(SinkError, match="cannot write"):
        write_bytes(tmp_path, b"x")


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))


def test_written_files_have_the_usual_permissions(tmp_path):
    write_bytes(tmp_path / "ours", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
