"""A bundle takes its place whole, whoever else exports there, dies there, or has linked it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from export.placing import check_target, replacing_folder
from export.to_onnx import parse_size
from runtime.contract.bundle import MAKING_SUFFIX, MOVED_SUFFIX
from runtime.contract.errors import BundleError, KestrelError, SinkError

ROOT = Path(__file__).resolve().parents[2]
FULL_DISK = OSError(28, "No space left on device")
CHILD = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from export.placing import replacing_folder
with replacing_folder(Path({out!r}), print) as folder:
    (folder / "new").write_text("half")
    {dies}
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_AFTER_THE_FIRST_RENAME = f"""
    rename = Path.rename
    def rename_and_die(self, target):
        rename(self, target)
        {KILL}
    Path.rename = rename_and_die
"""


def quietly(line: str) -> None:
    """Take a line of progress and show it to nobody."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An old bundle, as far as a folder's name goes."""
    out = tmp_path / "runs" / "mine"
    out.mkdir(parents=True)
    (out / "old").write_text("old")
    return out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replace(out: Path, text: str = "new") -> None:
    with replacing_folder(out, quietly) as folder:
        (folder / text).write_text(text)


def run_out_of_space(out: Path) -> None:
    with replacing_folder(out, quietly) as folder:
        assert names(out) == ["old"]
        (folder / "new").write_text("new")
        raise FULL_DISK


def kill_an_export(out: Path, dies: str) -> None:
    code = CHILD.format(root=str(ROOT), out=str(out), dies=dies.strip())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_new_folder_takes_the_place_and_nothing_else_stays(out):
    replace(out)
    assert names(out) == ["new"]
    assert names(out.parent) == ["mine"]


def test_folder_of_a_killed_export_is_removed_by_the_next(out):
    kill_an_export(out, KILL)
    assert names(out) == ["old"]
    assert len(names(out.parent)) == 3  # the lock file, which the dead hold no more, and the folder
    replace(out)
    assert names(out.parent) == ["mine"]


def test_old_bundle_of_an_export_killed_between_the_renames_comes_back(out):
    kill_an_export(out, KILL_AFTER_THE_FIRST_RENAME)
    assert not out.exists()
    with pytest.raises(SinkError):
        run_out_of_space(out)
    assert names(out) == ["old"]
    assert names(out.parent) == ["mine"]


def test_folders_of_bundles_of_longer_names_are_left_alone(out):
    others = [f".mine.v2.abcdefgh{MAKING_SUFFIX}", f".mine2.abcdefgh{MOVED_SUFFIX}", ".mine.backup"]
    for name in others:
        (out.parent / name).mkdir()
    replace(out)
    assert names(out.parent) == sorted([*others, "mine"])


def test_second_export_to_one_place_waits_for_the_first(out):
    lines: list[str] = []
    is_waiting = threading.Event()

    def tell(line: str) -> None:
        lines.append(line)
        is_waiting.set()

    def second() -> None:
        with replacing_folder(out, tell) as folder:
            assert names(out) == ["first"]
            (folder / "second").write_text("")

    thread = threading.Thread(target=second)
    with replacing_folder(out, quietly) as folder:
        (folder / "first").write_text("")
        thread.start()
        assert is_waiting.wait(30)
    thread.join(30)
    assert names(out) == ["second"]
    assert lines == [f"another export writes {out}; waiting for it"]


@pytest.mark.parametrize("is_there", [True, False], ids=["to a bundle", "to nothing"])
def test_link_stays_a_link_and_its_target_is_replaced(out, tmp_path, is_there):
    if not is_there:
        (out / "old").unlink()
        out.rmdir()
    link = tmp_path / "latest"
    link.symlink_to(out)
    replace(link)
    assert link.is_symlink()
    assert names(out) == ["new"]
    assert names(out.parent) == ["mine"]
    assert names(tmp_path) == ["latest", "runs"]


def test_mount_point_is_refused():
    with pytest.raises(BundleError, match="/ is a mount point, which cannot be replaced; nothing"):
        check_target(Path("/"))


def test_full_disk_is_told_with_a_cure_and_leaves_the_old(out):
    with pytest.raises(SinkError, match=f"cannot write {out}: No space left on device; free some"):
        run_out_of_space(out)
    assert names(out) == ["old"]
    assert names(out.parent) == ["mine"]


def test_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(out, monkeypatch):
    rename = Path.rename

    def rename_but_not_the_new(self: Path, target: Path) -> Path:
        if Path(target) == out and self.name.endswith(MAKING_SUFFIX):
            raise FULL_DISK
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_but_not_the_new)
    with pytest.raises(SinkError, match="No space left"):
        replace(out)
    assert names(out) == ["old"]
    assert names(out.parent) == ["mine"]


@pytest.mark.parametrize(
    "text", ["64\u00b2x64", "\u0666\u0664x64", "64x", "x", "64x64x64", "63x64", "9" * 9]
)
def test_size_that_is_none_is_refused_in_words(text):
    with pytest.raises(KestrelError, match="is no size; expected WIDTHxHEIGHT"):
        parse_size(text)


def test_size_is_width_by_height():
    assert parse_size("640X384") == (384, 640)
    assert parse_size("550x550") == (550, 550)
