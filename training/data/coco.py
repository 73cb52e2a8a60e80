"""COCO JSON data sets: boxes, outlines (polygons and RLE), crowds, keypoints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.data.outlines import run_lengths
from training.data.records import (
    SPLIT_NAMES,
    Defects,
    Record,
    RecordSource,
    known_size,
    split_by_hash,
    unknown_split,
)
from training.data.sample import DataError

FOLDER_FILE = "_annotations.coco.json"  # one in the folder of each split
TRACK_KEYS = ("track_id", "instance_id")  # of an annotation, as data sets of video call it
NUM_PROBED = 50  # images looked up to find the image folder


def has_splits(root: Path) -> bool:
    """Whether the folder holds a COCO file for at least one split."""
    return bool(_split_files(root))


def is_lone_file(root: Path) -> bool:
    """Whether the folder holds one COCO file for everything."""
    return _lone_file(root) is not None


def load_coco(root: Path, split: str, *, wants_joints: bool = False) -> RecordSource:
    """Open one split of a COCO folder, or a COCO JSON file.

    Args:
        root: a folder (``annotations/instances_val2017.json``, ``valid/_annotations.coco.json``,
            ``annotations.json`` ...), or the JSON file itself. A file named after a split stands
            for that split and finds its siblings; any other file is split 80/10/10 by hash.
        split: "train", "val", "test"; "all" takes a file without splits whole.
        wants_joints: of a folder that has both, take ``person_keypoints_val2017.json`` in place of
            ``instances_val2017.json``.
    """
    if root.is_file():
        if root.name == FOLDER_FILE and _split_of(root.parent.name) is not None:
            return load_coco(root.parent.parent, split)
        path, is_split = _sibling(root, split), _split_of(root.stem) is not None
        return _load_file(path, root.parent, split, is_split=is_split)
    by_split = _split_files(root, wants_joints=wants_joints)
    if by_split:
        if split not in by_split:
            raise unknown_split(str(root), split, list(by_split))
        return _load_file(by_split[split], root, split, is_split=True)
    lone = _lone_file(root)
    if lone is None:
        raise DataError(f"{root}: expected a COCO .json in it or in its annotations folder.")
    return _load_file(lone, root, split, is_split=False)


def _split_files(root: Path, *, wants_joints: bool = False) -> dict[str, Path]:
    """The annotation file of each split that the folder has."""
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            patterns = (
                *([f"annotations/person_keypoints_{name}*.json"] if wants_joints else []),
                f"annotations/instances_{name}.json",
                f"annotations/instances_{name}*.json",
                f"annotations/{name}.json",
                f"{name}/{FOLDER_FILE}",
                f"{name}.json",
                f"annotations/*_{name}.json",
                f"annotations/*_{name}[0-9]*.json",
            )
            for pattern in patterns:
                paths = sorted(root.glob(pattern))
                if paths and split not in found:
                    found[split] = paths[0]
    return found


def _lone_file(root: Path) -> Path | None:
    """The one annotation file of a folder without splits."""
    for path in (root / "annotations.json", root / FOLDER_FILE):
        if path.is_file():
            return path
    paths = [*root.glob("*.json"), *root.glob("annotations/*.json")]
    return paths[0] if len(paths) == 1 else None


def _split_of(stem: str) -> tuple[str, str] | None:
    """The split that a file's name stands for, and the word that says so."""
    words = stem.lower().replace("-", "_").replace(".", "_").split("_")
    for word in words:
        for split, names in SPLIT_NAMES.items():
            if word.rstrip("0123456789") in names:
                return split, word
    return None


def _sibling(path: Path, split: str) -> Path:
    """The file that holds a split, beside the file of another split."""
    named = _split_of(path.stem)
    if named is None or split in (named[0], "all"):
        return path
    year = named[1].lstrip("abcdefghijklmnopqrstuvwxyz")
    for name in SPLIT_NAMES.get(split, ()):
        other = path.with_name(path.name.replace(named[1], name + year))
        if other != path and other.is_file():
            return other
    raise unknown_split(str(path), split, [named[0]])


def _load_file(path: Path, root: Path, split: str, *, is_split: bool) -> RecordSource:
    content = _read_json(path)
    defects = Defects()
    categories, joints, skeleton = _categories(content, path)
    folder = _image_folder(path, root, split, content["images"])
    records: dict[int, Record] = {}
    for image in content["images"]:
        record = _image_record(image, folder, defects)
        if record is not None and record.image_id in records:
            defects.add("repeated image id", str(record.image_id))
        elif record is not None:
            records[record.image_id] = record
    if not is_split:
        names = dict.fromkeys(record.file_name for record in records.values())
        chosen = set(split_by_hash(list(names), split, str(path)))
        left_out = {key for key, record in records.items() if record.file_name not in chosen}
    else:
        left_out = set()
    grouped: dict[int | None, list[dict]] = {key: [] for key in records}
    for annotation in content["annotations"]:
        key = _whole(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if key in grouped:
            grouped[key].append(annotation)
        else:
            defects.add("annotation of an unknown image", f"image_id {key}")
    kept = [record for key, record in records.items() if key not in left_out]
    index: dict[int | None, int] = {
        category: place for place, category in enumerate(sorted(categories))
    }
    for record in kept:
        _fill(record, grouped[record.image_id], index, len(joints), defects)
    jointed = {int(entry["id"]) for entry in content["categories"] if entry.get("keypoints")}
    return RecordSource(
        f"{path} ({split})",
        kept,
        categories,
        defects,
        joints=joints,
        skeleton=skeleton,
        jointed=tuple(index[category] for category in sorted(jointed)),
    )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}. Expected a COCO file.") from error
    lists = ("images", "annotations", "categories")
    if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in lists):
        return content
    found = ", ".join(sorted(content)[:6]) if isinstance(content, dict) else type(content).__name__
    raise DataError(
        f"{path} holds {found or 'nothing'}; a COCO file has the lists {', '.join(lists)}. "
        "Name the annotation file itself."
    )


def _categories(
    content: dict, path: Path
) -> tuple[dict[int, str], tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Ids and names, and the joints of the first category that has any."""
    try:
        categories = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        keyed = next((entry for entry in content["categories"] if entry.get("keypoints")), {})
        joints = tuple(str(name) for name in keyed.get("keypoints", ()))
        skeleton = tuple((int(a) - 1, int(b) - 1) for a, b in keyed.get("skeleton") or ())
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: a category lacks an id or a name ({error!r}); "
            'expected entries like {"id": 1, "name": "person"}.'
        ) from error
    if not categories:
        raise DataError(f"{path} names no categories; expected at least one with id and name.")
    return categories, joints, skeleton


def _image_folder(path: Path, root: Path, split: str, images: Sequence) -> Path:
    """The folder that holds most of the images, by looking some of them up."""
    base = root.parent if root.name == "annotations" else root
    aliases = SPLIT_NAMES.get(split, (split,))
    words = path.stem.rsplit("_", 1)[-1], *aliases
    folders = [base / "images" / word for word in words] + [base / word for word in words]
    folders += [base / word / "images" for word in words]
    folders += [base / "images", base / "JPEGImages", base / "data", path.parent, base]
    folders += [path.parent / "images", path.with_suffix("")]
    names = [image.get("file_name") for image in images if isinstance(image, dict)]
    names = [name for name in names if isinstance(name, str) and name]
    probed = names[:: max(1, len(names) // NUM_PROBED)]
    found = [sum((folder / name).is_file() for name in probed) for folder in folders]
    if max(found, default=0) == 0:
        tried = ", ".join(dict.fromkeys(str(folder) for folder in folders if folder.is_dir()))
        example = probed[0] if probed else "no file_name at all"
        raise DataError(
            f"{path}: found none of its images (such as {example}) in {tried}. "
            "Put them into an images folder beside it."
        )
    return folders[int(np.argmax(found))]


def _image_record(image: object, folder: Path, defects: Defects) -> Record | None:
    try:
        name, key = str(image["file_name"]), int(image["id"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError, OverflowError):
        defects.add("malformed image entry", str(image)[:60])
        return None
    size = image.get("width"), image.get("height")  # type: ignore[attr-defined]
    places = _whole(image.get("video_id")), _whole(image.get("frame_index"))  # type: ignore[attr-defined]
    video = (places[0], places[1]) if places[0] is not None and places[1] is not None else None
    return Record(
        path=folder / name, file_name=name, image_id=key, image_wh=known_size(*size), video=video
    )


def _fill(
    record: Record,
    annotations: list[dict],
    index: dict[int | None, int],
    joints: int,
    defects: Defects,
) -> None:
    """Put the annotations of one image into its record."""
    boxes, classes, crowds, outlines, keypoints, tracks = [], [], [], [], [], []
    for annotation in annotations:
        place = index.get(_whole(annotation.get("category_id")))
        box = _numbers(annotation.get("bbox"), 4)
        if place is None:
            category = annotation.get("category_id")
            defects.add("unknown class", f"{record.file_name}: category_id {category}")
        elif box is None:
            defects.add("malformed box", record.file_name)
        else:
            x, y, width, height = box
            boxes.append((x, y, x + width, y + height))
            classes.append(place)
            crowds.append(bool(annotation.get("iscrowd", 0)))
            outlines.append(_outline(annotation.get("segmentation"), record, defects))
            keypoints.append(_joints(annotation.get("keypoints"), joints, record, defects))
            named = [annotation[key] for key in TRACK_KEYS if key in annotation]
            tracks.append(_whole(named[0]) if named else None)
    record.boxes = np.array(boxes, np.float64).reshape(-1, 4)
    record.classes = np.array(classes, np.int64)
    record.is_crowd = np.array(crowds, bool)
    record.outlines = outlines
    if joints:
        record.keypoints = np.array(keypoints, np.float64).reshape(-1, joints, 3)
    if record.video is not None and None not in tracks:
        record.track_ids = np.array(tracks, np.int64)


def _whole(value: object) -> int | None:
    try:
        return int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return None


def _numbers(values: object, num: int) -> list[float] | None:
    """A list of that many numbers; None where it is anything else. NaN passes: counted later."""
    if not isinstance(values, list | tuple) or len(values) != num:
        return None
    try:
        return [math.nan if value is None else float(value) for value in values]
    except (TypeError, ValueError):
        return None


def _outline(entry: object, record: Record, defects: Defects) -> list[np.ndarray] | dict | None:
    """Check one ``segmentation``; None where there is none that can be drawn."""
    if not entry:
        return None
    try:
        if isinstance(entry, dict):
            if record.image_wh in (None, tuple(entry["size"])[::-1]):
                return {"size": entry["size"], "counts": run_lengths(entry)}
            raise ValueError("made for an image of another size")
        polygons = [np.array(part, np.float64).reshape(-1, 2) for part in entry]
        whole = [part for part in polygons if len(part) >= 3]
        if whole and all(np.isfinite(part).all() for part in whole):
            defects.add(
                "part of an outline with under 3 points",
                record.file_name,
                len(polygons) - len(whole),
            )
            return whole
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        pass
    defects.add("malformed outline, drawn as its box", record.file_name)
    return None


def _joints(entry: object, num: int, record: Record, defects: Defects) -> np.ndarray:
    """(J, 3) of one object; all 0 where it has no keypoints."""
    empty = np.zeros((num, 3))
    if not num or not entry:
        return empty
    values = _numbers(entry, 3 * num)
    if values is None:
        defects.add("malformed keypoints", record.file_name)
        return empty
    return np.array(values).reshape(num, 3)
