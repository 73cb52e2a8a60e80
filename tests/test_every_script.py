"""Every script, given what it cannot use: one line on stderr, status 2, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calling import Done, call

from runtime.contract.bundle import hash_file
from runtime.contract.manifest import MANIFEST_NAME

ROOT = Path(__file__).resolve().parents[1]
BAD_INPUT = 2
TINY_DISK_BYTES = 48 << 10


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, hidden files included."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refuse(place: Path, script: str, *arguments: object) -> str:
    """Run a script that must refuse; give its one line."""
    before = tree(place)
    done = call(script, *arguments)
    line = refusal(done)
    assert tree(place) == before, "something was written"
    return line


def refusal(done: Done) -> str:
    assert done.returncode == BAD_INPUT, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stdout
    return lines[0]


# ---------------------------------------------------------------------------- what is given to them


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the scripts run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def truncated_checkpoint(place: Path, tiny_checkpoint: Path) -> Path:
    path = place / "half.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes()[:5000])
    return path


@pytest.fixture
def empty_data(place: Path) -> Path:
    folder = place / "empty"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(document))
    return folder


def newer_schema(bundle: Path) -> None:
    change_manifest(bundle, schema=99)


def lacking_field(bundle: Path) -> None:
    path = bundle / MANIFEST_NAME
    document = json.loads(path.read_text())
    del document["geometry"]
    path.write_text(json.dumps(document))


def no_manifest(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).unlink()


def manifest_cut_short(bundle: Path) -> None:
    path = bundle / MANIFEST_NAME
    path.write_text(path.read_text()[:100])


def wrong_hash(bundle: Path) -> None:
    path = bundle / "model.fp32.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def corrupt_onnx(bundle: Path) -> None:
    """Damaged, and yet with the right hash."""
    path = bundle / "model.fp32.onnx"
    path.write_bytes(b"\x08\x0a" + os.urandom(4000))
    graphs = json.loads((bundle / MANIFEST_NAME).read_text())["graphs"]
    graphs["model"]["sha256"][path.name] = hash_file(path)
    change_manifest(bundle, graphs=graphs)


def graph_missing(bundle: Path) -> None:
    (bundle / "model.fp32.onnx").unlink()


def change_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -------------------------------------------------------------------------------- training, export


@pytest.mark.parametrize("script", ["training.train", "export.to_onnx", "export.to_trt"])
def test_unknown_model_is_refused_with_the_nearest_name(script: str, place: Path):
    assert "Did you mean 'retinanet'" in refuse(place, script, "--model", "retinanett")


@pytest.mark.parametrize("script", ["training.train", "export.to_onnx"])
def test_unknown_variant_is_refused_with_those_there_are(script: str, place: Path):
    line = refuse(place, script, "--model", "retinanet", "--variant", "huge")
    assert re.search(r"no variant 'huge'.*small, r50", line)


@pytest.mark.parametrize(
    ("script", "size"),
    [
        ("training.train", "640"),
        ("training.train", "10x99999"),
        ("export.to_onnx", "640*384"),
        ("export.to_onnx", "100x63"),
        ("export.to_trt", "0x0"),
    ],
)
def test_wrong_size_is_refused_with_an_example(script: str, size: str, place: Path, discs: Path):
    line = refuse(place, script, "--model", "retinanet", "--data", discs, "--size", size)
    assert repr(size) in line
    assert "such as 640x384" in line


def checkpoint_calls(checkpoint: Path, data: Path) -> list[tuple]:
    return [
        ("export.to_onnx", "--model", "retinanet", "--checkpoint", checkpoint, "--out", "out"),
        ("training.score", "--checkpoint", checkpoint, "--data", data),
        ("training.train", "--model", "retinanet", "--data", data, "--init", checkpoint),
    ]


@pytest.mark.parametrize("which", range(3), ids=["to_onnx", "score", "train"])
def test_missing_checkpoint_is_refused_by_its_path(which: int, place: Path, discs: Path):
    arguments = checkpoint_calls(place / "none.safetensors", discs)[which]
    assert "none.safetensors" in refuse(place, *arguments)


@pytest.mark.parametrize("which", range(3), ids=["to_onnx", "score", "train"])
def test_truncated_checkpoint_is_refused(which: int, place, truncated_checkpoint, discs):
    arguments = checkpoint_calls(truncated_checkpoint, discs)[which]
    assert "no whole safetensors file" in refuse(place, *arguments)


def test_checkpoint_of_another_model_is_refused(place: Path, tiny_checkpoint: Path):
    line = refuse(
        place, "training.score", "--checkpoint", tiny_checkpoint, "--model", "yolact"
    )  # the only other way in is an export of another registered model
    assert "a checkpoint of model 'retinanet'; expected 'yolact'" in line


@pytest.mark.parametrize("which", range(3), ids=["to_onnx", "score", "train"])
def test_empty_data_set_is_refused(which: int, place: Path, empty_data: Path, tiny_checkpoint):
    arguments = checkpoint_calls(tiny_checkpoint, empty_data)[which]
    if "--data" not in arguments:
        arguments = (*arguments, "--data", empty_data)
    assert "empty" in refuse(place, *arguments)


@pytest.mark.parametrize(
    "script", [("training.train", "--model", "retinanet"), ("benchmarks.accuracy", "r.json")]
)
def test_missing_data_set_is_refused(script: tuple[str, ...], place: Path):
    (place / "r.json").write_text("[]")
    assert "nowhere" in refuse(place, *script, "--data", place / "nowhere")


def test_score_on_data_of_other_classes_is_refused(place: Path, tiny_checkpoint: Path):
    line = refuse(place, "training.score", "--checkpoint", tiny_checkpoint, "--data", "street")
    assert "pink, green, blue" in line


@pytest.mark.parametrize(
    ("option", "value"), [("--lr", "nan"), ("--steps", "0"), ("--batch", "-2"), ("--workers", "-1")]
)
def test_number_that_trains_nothing_is_refused(option: str, value: str, place: Path, discs: Path):
    line = refuse(place, "training.train", "--model", "retinanet", "--data", discs, option, value)
    assert option in line


# ------------------------------------------------------------------------------------------ bundles

READERS: dict[str, Callable[[Path], tuple]] = {
    "verify": lambda b: ("export.verify", b, "--checkpoint", "none.safetensors"),
    "run_images": lambda b: ("runtime.run_images", b, "pictures", "--out", "r.json"),
    "run_video": lambda b: ("runtime.run_video", b, "--source", "pictures", "--json", "r.jsonl"),
    "latency": lambda b: ("benchmarks.latency", b, "--source", "pictures"),
}
RUNNERS = {name: READERS[name] for name in ("run_images", "run_video", "latency")}


def provide(place: Path) -> None:
    """A folder with a picture, for scripts that look at their source first."""
    (place / "pictures").mkdir()
    write_picture(place / "pictures" / "a.png")


def write_picture(path: Path) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(path), np.zeros((64, 96, 3), np.uint8))


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_missing_bundle_is_refused(reader, place: Path):
    provide(place)
    assert "nowhere" in refuse(place, *reader(place / "nowhere"))


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (newer_schema, "schema 99; this runtime reads up to 1"),
        (lacking_field, "lacks field 'geometry'"),
        (no_manifest, "manifest.json"),
        (manifest_cut_short, "is not JSON"),
    ],
)
def test_bundle_with_a_bad_manifest_is_refused(reader, spoil, says, place: Path, tiny_exported):
    provide(place)
    spoil(tiny_exported)
    assert says in refuse(place, *reader(tiny_exported))


@pytest.mark.parametrize("reader", RUNNERS.values(), ids=RUNNERS)
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (wrong_hash, "has sha256"),
        (corrupt_onnx, "model.fp32.onnx"),
        (graph_missing, "is missing"),
    ],
)
def test_bundle_with_a_bad_graph_is_refused(reader, spoil, says, place: Path, tiny_exported):
    provide(place)
    spoil(tiny_exported)
    arguments = (*reader(tiny_exported), "--backend", "onnxruntime")
    assert says in refuse(place, *arguments)


# ------------------------------------------------------------------------------------------ sources


def test_missing_video_is_refused(place: Path, tiny_exported: Path):
    arguments = (
        "runtime.run_video",
        tiny_exported,
        "--source",
        place / "none.mp4",
        "--json",
        "r.jsonl",
    )
    assert "none.mp4" in refuse(place, *arguments, "--backend", "onnxruntime")


def test_file_that_is_no_video_is_refused(place: Path, tiny_exported: Path):
    video = place / "clip.mp4"
    video.write_bytes(b"no video")
    arguments = ("runtime.run_video", tiny_exported, "--source", video, "--json", "r.jsonl")
    assert "clip.mp4" in refuse(place, *arguments, "--backend", "onnxruntime")


def test_missing_image_is_refused(place: Path, tiny_exported: Path):
    arguments = ("runtime.run_images", tiny_exported, place / "none.png", "--out", "r.json")
    assert "none.png" in refuse(place, *arguments, "--backend", "onnxruntime")


def test_image_that_is_none_is_refused(place: Path, tiny_exported: Path):
    (place / "text.png").write_text("no picture")
    arguments = ("runtime.run_images", tiny_exported, place / "text.png", "--out", "r.json")
    assert "text.png" in refuse(place, *arguments, "--backend", "onnxruntime")


# ------------------------------------------------------------------------------------------- output


@pytest.fixture
def tiny_disk(place: Path) -> Iterator[Path]:
    """A file system that is full after some kilobytes."""
    folder = place / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={TINY_DISK_BYTES}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_export_to_a_full_disk_leaves_nothing(tiny_disk, tiny_checkpoint, discs, quick_trace):
    line = refuse(
        tiny_disk, "export.to_onnx", "--model", "retinanet", "--checkpoint", tiny_checkpoint,
        "--data", discs, "--out", tiny_disk / "bundle", "--precision", "fp32",
    )  # fmt: skip
    assert "No space left" in line


def test_training_on_a_full_disk_ends_with_one_line_and_no_half_checkpoint(
    tiny_disk: Path, discs: Path
):
    done = call(
        "training.train", "--model", "retinanet", "--data", discs, "--out", tiny_disk / "run",
        "--size", "64x64", "--steps", 2, "--batch", 2, "--workers", 0, "--init", "scratch",
        "--precision", "fp32",
    )  # fmt: skip
    assert done.returncode == BAD_INPUT
    assert "No space left" in done.stderr.splitlines()[-1]
    assert "Free space or choose another --out" in done.stderr.splitlines()[-1]
    assert list((tiny_disk / "run").glob("*.safetensors")) == []
    assert list((tiny_disk / "run").glob(".*")) == []


def test_scores_that_cannot_be_written_are_refused(place: Path, tiny_checkpoint: Path, discs: Path):
    (place / "taken").write_text("a file, not a folder")
    done = call(
        "training.score", "--checkpoint", tiny_checkpoint, "--data", discs, "--images", 1,
        "--out", place / "taken" / "scores.json",
    )  # fmt: skip
    assert done.returncode == BAD_INPUT
    assert len(done.stderr.splitlines()) == 1


def test_score_writes_json_without_nan(place: Path, tiny_checkpoint: Path, discs: Path):
    out = place / "scores.json"
    done = call(
        "training.score", "--checkpoint", tiny_checkpoint, "--data", discs, "--images", 2,
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0

    def forbid(name: str) -> None:
        raise AssertionError(name)

    scores = json.loads(out.read_text(), parse_constant=forbid)["scores"]
    assert scores["AP_large"] is None
    assert 0 <= scores["AP"] <= 1


# ------------------------------------------------------------------------------------------- ending

SCRIPTS = [
    path
    for package in ("training", "export", "runtime", "benchmarks")
    for path in sorted((ROOT / package).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_script_ends_through_run_script(path: Path):
    last = path.read_text().rstrip().splitlines()[-1]
    # run_video.py ends the process itself where a library's thread would not let it.
    assert last.strip() in ("sys.exit(run_script(main))", "sys.exit(end_process(run_script(main)))")
