"""Writing the street to files: a COCO data set, a video clip; whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from training.data.outlines import encode_rle
from training.data.sample import DataError
from training.data.street.dataset import Street
from training.data.street.frame import StreetFrame, check_size, render_frame
from training.data.street.vocabulary import (
    CATEGORY_IDS,
    CLASSES,
    JOINT_NAMES,
    JOINT_SKELETON,
    PERSON,
)

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
IMAGE_FORMATS = ("jpg", "png")


def write_coco(
    split: str,
    length: int | None,
    out_dir: Path,
    *,
    size_hw: tuple[int, int] = (432, 768),
    image_format: str = "jpg",
    jpeg_quality: int = 92,
) -> Path:
    """Write a split as COCO: `images/` and `annotations.json`, with masks and joints.

    Args:
        split: train, val or test.
        length: number of images; the whole split when None.
        out_dir: must not exist yet, or be empty; appears only when all is written.
        size_hw: height and width of the images in pixels.
        image_format: jpg or png.
        jpeg_quality: 1..100.

    Returns:
        The path of `annotations.json`.
    """
    if image_format not in IMAGE_FORMATS:
        raise DataError(
            f"image format is {image_format!r}; expected {' or '.join(IMAGE_FORMATS)}. Name one."
        )
    source = Street(split, length, size_hw=size_hw, labels=("masks", "keypoints"))
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if image_format == "jpg" else []
    with _whole(Path(out_dir)) as folder:
        (folder / "images").mkdir(parents=True)
        document = _header(source)
        for index in range(len(source)):
            frame, name = source.frame(index), f"{split}_{index:06d}.{image_format}"
            _write_image(folder / "images" / name, frame.image, options)
            height, width = source.size_hw
            seed, time = source.scene_of(index)
            document["images"].append(
                {"id": index, "file_name": name, "height": height, "width": width, "seed": seed,
                 "index": time}
            )  # fmt: skip
            first = len(document["annotations"]) + 1
            document["annotations"] += _annotations(frame, index, first)
        text = json.dumps(document, separators=(",", ":"))
        (folder / "annotations.json").write_text(text, encoding="utf-8")
    return Path(out_dir) / "annotations.json"


def _header(source: Street) -> dict[str, Any]:
    categories: list[dict[str, Any]] = [
        {"id": number, "name": name, "supercategory": "street"}
        for number, name in zip(CATEGORY_IDS, CLASSES, strict=True)
    ]
    categories[PERSON]["keypoints"] = list(JOINT_NAMES)
    categories[PERSON]["skeleton"] = [[a + 1, b + 1] for a, b in JOINT_SKELETON]
    description = f"Kestrel's procedural street, split {source.split}"
    return {
        "info": {"description": description, "version": "1", "year": 2026},
        "licenses": [],
        "categories": categories,
        "images": [],
        "annotations": [],
    }


def _annotations(frame: StreetFrame, image_id: int, first_id: int) -> list[dict[str, Any]]:
    assert frame.masks is not None
    assert frame.keypoints_xyv is not None
    rows = []
    for row, (x1, y1, x2, y2) in enumerate(frame.boxes_xyxy.tolist()):
        mask, kind = frame.masks[row], int(frame.classes[row])
        annotation: dict[str, Any] = {
            "id": first_id + row,
            "image_id": image_id,
            "category_id": CATEGORY_IDS[kind],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(mask.sum()),
            "iscrowd": int(frame.is_crowd[row]),
            "segmentation": encode_rle(mask),
            "track_id": int(frame.track_ids[row]),
        }
        if kind == PERSON:
            joints = frame.keypoints_xyv[row]
            annotation["keypoints"] = [round(float(value), 2) for value in joints.ravel()]
            annotation["num_keypoints"] = int((joints[:, 2] > 0).sum())
        rows.append(annotation)
    return rows


def write_clip(
    seed: int,
    num_frames: int,
    path: Path,
    fps: float = 25.0,
    *,
    size_hw: tuple[int, int] = (432, 768),
) -> Path:
    """Write the first frames of a scene as a video (H.264, yuv420p), or as a folder of PNGs.

    Args:
        seed: of the scene.
        num_frames: 1 or more.
        path: ends in .mp4, .mkv or .mov for a video; without an ending it names a folder.
        fps: frames a second of the video; 25 is the scene's own pace.
        size_hw: height and width in pixels; even for a video.
    """
    path = Path(path)
    if num_frames < 1 or not 1 <= fps <= 240:
        raise DataError(
            f"a clip of {num_frames} frames at {fps} a second; expected 1 frame or more at 1 to "
            "240 a second. Choose others."
        )
    if seed < 0:
        raise DataError(f"clip seed is {seed}; expected 0 or more. Choose another.")
    if path.suffix and path.suffix not in VIDEO_SUFFIXES:
        raise DataError(
            f"{path.name} ends in {path.suffix}; expected {', '.join(VIDEO_SUFFIXES)}, or no "
            "ending for a folder of PNG files. Rename it."
        )
    size_hw = check_size(size_hw)
    if path.suffix and (size_hw[0] % 2 or size_hw[1] % 2):
        raise DataError(
            f"the clip is {size_hw[1]}x{size_hw[0]}; expected even sides for H.264. Change it."
        )
    frames = (render_frame(seed, index, size_hw=size_hw).image for index in range(num_frames))
    if path.suffix:
        if path.is_dir():
            raise DataError(f"{path} is a folder; expected the name of a video. Name another.")
        with _whole(path, may_replace=True) as partial:
            _encode(frames, partial, fps, size_hw)
    else:
        with _whole(path) as partial:
            partial.mkdir(parents=True)
            for index, image in enumerate(frames):
                _write_image(partial / f"{index:06d}.png", image, [])
    return path


def _encode(frames: Iterator[np.ndarray], path: Path, fps: float, size_hw: tuple[int, int]) -> None:
    try:
        import av
    except ModuleNotFoundError:
        raise DataError(
            "PyAV is not installed; expected it for writing a video. Install it with "
            "`pip install av`, or give a path without an ending for a folder of PNG files."
        ) from None
    from fractions import Fraction

    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = size_hw
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))


def _write_image(path: Path, image: np.ndarray, options: list[int]) -> None:
    if not cv2.imwrite(str(path), image, options):
        raise DataError(f"{path} could not be written. Check the space and the rights there.")


@contextmanager
def _whole(path: Path, *, may_replace: bool = False) -> Iterator[Path]:
    """A place beside `path` to write to, moved there when all went well, else removed."""
    if not may_replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} exists and is not an empty folder. Name a new one.")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
        if path.is_dir():
            path.rmdir()
        partial.replace(path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
