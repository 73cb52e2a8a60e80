"""Odd sources through the whole script: sizes that change, raw pipes, folders with damage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from calling import call
from pipeline_fakes import count_with_opencv
from tiny_bundle import InputGeometry, paint, write_tiny_bundle

av = pytest.importorskip("av")

ROOT = Path(__file__).resolve().parents[2]
BACKEND = ("--backend", "onnxruntime")
SIZES_WH = ((256, 192), (192, 256), (128, 96))
PIXELS_OFF = 2.5  # the letterbox's scale and the codec's loss move an edge by this much


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=InputGeometry(96, 128), num_samples=0)


def box_of(size_wh, number=0):
    """A blue box in the upper left quarter, by a pixel further for each frame."""
    width, height = size_wh
    left, top = width // 8 + number, height // 8
    return left, top, left + width // 4, top + height // 4


def picture(size_wh, number=0):
    return paint(size_wh[1], size_wh[0], {0: box_of(size_wh, number)})


def encode(path, size_wh, num_frames):
    with av.open(str(path), "w", format="h264") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(size_wh, number), format="bgr24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path.read_bytes()


def run(*arguments):
    done = call("runtime.run_video", *arguments, *BACKEND)
    assert done.returncode == 0, done.stderr
    return done


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_boxes_and_video_follow_a_size_that_changes_in_mid_stream(bundle, tmp_path):
    film = tmp_path / "film.h264"
    film.write_bytes(b"".join(encode(tmp_path / "part", size, 4) for size in SIZES_WH))
    out, results = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    run(bundle, "--source", film, "--out", out, "--json", results)
    lines = lines_of(results)
    assert [line["frame"] for line in lines] == list(range(12))
    for number, line in enumerate(lines):
        size_wh = SIZES_WH[number // 4]
        (found,) = line["detections"]
        np.testing.assert_allclose(
            found["box_xyxy"], box_of(size_wh, number % 4), atol=PIXELS_OFF * size_wh[0] / 128
        )
    assert count_with_opencv(out) == 12


def test_raw_frames_on_standard_input_give_what_the_pictures_hold(bundle, tmp_path):
    size = SIZES_WH[0]
    data = b"".join(picture(size, number)[:, :, ::-1].tobytes() for number in range(3))
    uri = f"raw:-?size={size[0]}x{size[1]}&format=rgb24&rate=10"
    arguments = [str(bundle), "--source", uri, "--json", str(tmp_path / "out.jsonl"), *BACKEND]
    done = subprocess.run(
        [sys.executable, str(ROOT / "runtime" / "run_video.py"), *arguments],
        input=data + b"broken off", capture_output=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / "out.jsonl")
    assert [line["time_s"] for line in lines] == [0.0, 0.1, 0.2]
    for number, line in enumerate(lines):
        (found,) = line["detections"]
        np.testing.assert_allclose(
            found["box_xyxy"], box_of(size, number), atol=PIXELS_OFF * size[0] / 128
        )
    assert b"corrupt 1" in done.stdout


def test_folder_of_all_sorts_of_images_runs_to_its_end(bundle, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("1.png", (256, 192)), ("2.png", (1, 1)), ("4.png", (3000, 2))):
        cv2.imwrite(str(folder / name), np.full((size[1], size[0], 3), 40, np.uint8))
    cv2.imwrite(str(folder / "5.png"), picture((256, 192)).astype(np.uint16) * 257)
    (folder / "3.jpg").write_bytes(b"")
    out, results = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    done = run(bundle, "--source", folder, "--out", out, "--json", results)
    lines = lines_of(results)
    assert [Path(line["file"]).name for line in lines] == ["1.png", "2.png", "4.png", "5.png"]
    assert [len(line["detections"]) for line in lines] == [0, 0, 0, 1]
    assert "corrupt 1" in done.stdout
    assert count_with_opencv(out) == 4


@pytest.mark.parametrize("size_wh", [(1, 1), (2, 1), (1, 700), (700, 1), (33, 31)])
def test_results_are_drawn_into_a_frame_of_any_size(bundle, size_wh):
    from runtime.predictor import load

    image = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    image[:, :, 0] = 255  # one box, the whole frame
    with load(bundle, "onnxruntime", "fp32") as predictor:
        found = predictor.submit(image).result()
        drawn = predictor.draw(image, found)
    assert drawn.shape == image.shape
    if len(found):
        x1, y1, x2, y2 = found.boxes_xyxy[0]
        assert 0 <= x1 <= x2 <= size_wh[0]
        assert 0 <= y1 <= y2 <= size_wh[1]
