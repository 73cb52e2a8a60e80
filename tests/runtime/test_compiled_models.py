import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from runtime.contract.bundle import Bundle
from runtime.contract.errors import SessionError
from runtime.sessions import open_session
from runtime.sessions.openvino_session import OpenVinoSession

ROOT = Path(__file__).resolve().parents[2]
SCORE_ULPS = 1e-6


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kestrel" / "engines"


@pytest.fixture
def folder(tmp_path):
    return write_tiny_bundle(tmp_path / "tiny", verdicts={("fp32", "openvino"): "pass"})


def run(folder, **options):
    """Results of the bundle's samples, batch 4, from a session of its own."""
    session = open_session(Bundle.open(folder), "openvino", **options)
    samples = Bundle.open(folder).samples()
    results = session.run(samples.feeds)
    session.close()
    for name, expected in samples.results.items():
        np.testing.assert_allclose(results[name], expected, atol=SCORE_ULPS, err_msg=name)
    return results


def blobs(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def forbid_compiling(monkeypatch):
    def refuse(self, path, batch):
        raise AssertionError(f"{path} is compiled for batch {batch}")

    monkeypatch.setattr(OpenVinoSession, "_compile_file", refuse)


def test_second_start_compiles_nothing(folder, monkeypatch):
    first = run(folder)
    assert len(blobs(folder / "engines")) == 2  # batch 1 at once, batch 4 when it was fed
    forbid_compiling(monkeypatch)
    second = run(folder)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)


def test_nothing_is_kept_where_that_is_not_wanted(folder, user_cache):
    run(folder, cache=False)
    assert blobs(folder / "engines") == blobs(user_cache) == []


def test_every_option_has_compiled_models_of_its_own(folder):
    run(folder)
    run(folder, threads=1)
    assert len(blobs(folder / "engines")) == 4


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped bit": flip_a_bit,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "only its hash": lambda path: path.write_bytes(path.read_bytes()[:64]),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_file_is_compiled_anew(folder, damage):
    run(folder)
    for path in (folder / "engines").iterdir():
        damage(path)
    run(folder)


def test_damaged_file_is_healed(folder, caplog, monkeypatch):
    run(folder)
    for path in (folder / "engines").iterdir():
        flip_a_bit(path)
    run(folder)
    assert "is not what was written" in caplog.text
    forbid_compiling(monkeypatch)
    run(folder)


def test_file_that_openvino_refuses_is_compiled_anew(folder, caplog):
    import hashlib

    run(folder)
    for path in (folder / "engines").iterdir():
        nonsense = b"nonsense" * 1000
        path.write_bytes(hashlib.sha256(nonsense).hexdigest().encode() + nonsense)
    run(folder)
    assert "does not load; compiling anew" in caplog.text


def test_other_network_of_the_same_size_and_time_is_not_mistaken_for_the_old(tmp_path):
    answers = []
    for scores in ((0.9, 0.8, 0.6), (0.5, 0.8, 0.6)):
        folder = write_tiny_bundle(tmp_path, base_scores={"model.fp32.onnx": scores}, num_samples=0)
        os.utime(folder / "model.fp32.onnx", (1e9, 1e9))
        sizes = (folder / "model.fp32.onnx").stat().st_size
        session = open_session(Bundle.open(folder), "openvino")
        image = np.zeros((1, 48, 64, 3), np.uint8)
        image[0, 4:9, 4:9, 0] = 255
        thresholds = {"score_threshold": np.zeros((1, 3), np.float32)}
        feeds = {"image": image, "iou_threshold": np.ones(1, np.float32), **thresholds}
        answers.append((sizes, float(session.run(feeds)["scores"][0, 0])))
        session.close()
    assert answers[0][0] == answers[1][0]
    assert [score for _, score in answers] == pytest.approx([0.9, 0.5])


def test_bundle_that_cannot_be_written_uses_the_users_cache(folder, user_cache, monkeypatch):
    (folder / "engines").write_text("a file is in the way")
    run(folder)
    assert len(blobs(user_cache)) == 2
    forbid_compiling(monkeypatch)
    run(folder)


def test_session_runs_where_nothing_can_be_written(folder, user_cache):
    (folder / "engines").write_text("a file is in the way")
    user_cache.parent.mkdir(parents=True)
    user_cache.write_text("and here")
    run(folder)


def test_full_disk_costs_a_warning_and_leaves_nothing_half_written(folder, user_cache, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes; a blob has ten thousands
    try:
        run(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "is not kept" in caplog.text
    assert blobs(folder / "engines") == blobs(user_cache) == []


def test_processes_that_start_at_once_all_answer_and_leave_whole_files(folder, monkeypatch):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from runtime import load;"
        "import numpy as np; p = load(sys.argv[2], 'openvino', threads=1);"
        "print(len(p(np.zeros((48, 64, 3), np.uint8))))"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(folder)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60)[0].strip() for process in started]
    assert answers == ["0", "0", "0"]
    assert len(blobs(folder / "engines")) == 1
    forbid_compiling(monkeypatch)
    open_session(Bundle.open(folder), "openvino", threads=1).close()


def test_what_killed_writers_left_is_swept(folder):
    run(folder)
    (kept,) = [path for path in (folder / "engines").iterdir()][:1]
    left = folder / "engines" / f".{kept.stem}.1-abcd.part.blob"
    fresh = folder / "engines" / f".{kept.stem}.2-abcd.part.blob"  # its writer may be at work
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (1e9, 1e9))
    kept.unlink()
    run(folder)
    assert kept.exists()
    assert not left.exists()
    assert fresh.exists()


def test_file_that_was_replaced_under_an_open_session_is_not_mixed_in(tmp_path, folder):
    session = open_session(Bundle.open(folder), "openvino", threads=1)
    feeds = Bundle.open(folder).samples().feeds
    write_tiny_bundle(folder, base_scores={"model.fp32.onnx": (0.4, 0.4, 0.4)})
    with pytest.raises(SessionError, match=r"was replaced since it was loaded\. Open"):
        session.run(feeds)  # batch 4, not compiled yet
    session.close()
