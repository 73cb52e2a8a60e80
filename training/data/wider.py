"""WIDER FACE: its own lists of boxes, and RetinaFace's lists with five landmarks a face."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.data.joints import FACE_LANDMARKS
from training.data.records import SPLIT_NAMES, Defects, Record, RecordSource, unknown_split
from training.data.sample import DataError

NUM_LANDMARKS = 5
INVALID = 7  # column of WIDER FACE's own rows: x y w h blur expression illumination invalid ...
OWN_COLUMNS = 10
BARE_COLUMNS = (4, 5)  # rows of lists without landmarks
LANDMARK_COLUMNS = (4 + 3 * NUM_LANDMARKS, 5 + 3 * NUM_LANDMARKS)  # perhaps with how clear it is


def find_wider(root: Path) -> dict[str, tuple[Path, Path]]:
    """The list and the image folder of each split that a folder has; empty where it is no WIDER.

    Known are `train/label.txt` with `train/images` (RetinaFace's), and
    `wider_face_split/wider_face_train_bbx_gt.txt` with `WIDER_train/images` (WIDER FACE's own).
    """
    found = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            places = (
                (root / name / "label.txt", root / name / "images"),
                (
                    root / "wider_face_split" / f"wider_face_{name}_bbx_gt.txt",
                    root / f"WIDER_{name}" / "images",
                ),
            )
            for labels, images in places:
                if labels.is_file() and images.is_dir():
                    found.setdefault(split, (labels, images))
    return found


def load_wider(root: Path, split: str) -> RecordSource:
    """Open one split: faces with landmarks as far as the list has them.

    A landmark below 0 is not labelled; one with a flag above 0 is hidden. Faces that WIDER FACE
    calls invalid are crowds.

    Args:
        root: see `find_wider`.
        split: "train", "val" or "test".

    Raises:
        DataError: no such split, or no list of faces.
    """
    known = find_wider(root)
    if split not in known:
        raise unknown_split(str(root), split, list(known))
    labels, images = known[split]
    try:
        lines = labels.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{labels} cannot be read: {error}. Expected a list of faces.") from error
    defects = Defects()
    records = [
        _record(images, name, rows, number, labels.name, defects)
        for number, (name, rows) in enumerate(_blocks(lines, labels), start=1)
    ]
    return RecordSource(
        f"{root} ({split})",
        records,
        {1: "face"},
        defects,
        joints=FACE_LANDMARKS.joints,
        skeleton=FACE_LANDMARKS.skeleton,
    )


def _blocks(lines: list[str], path: Path) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """(image, its numbered rows); a line that is no row of numbers names an image."""
    name, rows = None, []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        is_name = text.startswith("#") or "/" in text or Path(text).suffix.isalpha()
        if text and (is_name or not _is_row(text)):
            if name is not None:
                yield name, rows
            name, rows = text.lstrip("# ").strip(), []
        elif text and name is None:
            raise DataError(
                f"{path}:{number} is {text[:40]!r}; expected the name of an image first, such as "
                "'# 0--Parade/1.jpg'. Give a list of WIDER FACE."
            )
        elif text:
            rows.append((number, text))
    if name is not None:
        yield name, rows


def _is_row(text: str) -> bool:
    try:
        [float(part) for part in text.split()]
    except ValueError:
        return False
    return True


def _record(
    images: Path,
    name: str,
    rows: list[tuple[int, str]],
    image_id: int,
    labels_name: str,
    defects: Defects,
) -> Record:
    boxes, crowds, keypoints = [], [], []
    for number, text in rows:
        values = np.array([float(part) for part in text.split()])
        if len(values) == 1:  # WIDER FACE's own lists count the faces first
            continue
        if len(values) not in (*BARE_COLUMNS, OWN_COLUMNS, *LANDMARK_COLUMNS):
            defects.add("malformed line", f"{labels_name}:{number}")
            continue
        if not values[:4].any():  # its own lists have a row of zeros where there is no face
            continue
        boxes.append((*values[:2], *(values[:2] + values[2:4])))
        crowds.append(len(values) == OWN_COLUMNS and values[INVALID] > 0)
        keypoints.append(_landmarks(values))
    return Record(
        path=images / name,
        file_name=name,
        image_id=image_id,
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        classes=np.zeros(len(boxes), np.int64),
        is_crowd=np.array(crowds, bool),
        keypoints=np.array(keypoints, np.float64).reshape(-1, NUM_LANDMARKS, 3),
    )


def _landmarks(values: np.ndarray) -> np.ndarray:
    """(5, 3) as (x, y, v) of one row; all 0 where it has none."""
    found = np.zeros((NUM_LANDMARKS, 3))
    if len(values) in LANDMARK_COLUMNS:
        triples = values[4 : 4 + 3 * NUM_LANDMARKS].reshape(-1, 3)
        is_labelled = (triples[:, :2] >= 0).all(axis=1)
        found[:, :2] = triples[:, :2]
        found[:, 2] = np.where(triples[:, 2] > 0, 1, 2)
        found[~is_labelled] = 0
    return found
