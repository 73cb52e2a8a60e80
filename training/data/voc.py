"""Pascal VOC data sets: one XML file an image, splits as lists of names."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from training.data.records import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    Defects,
    Record,
    RecordSource,
    known_size,
    split_by_hash,
    unknown_split,
)
from training.data.sample import DataError


def find_voc(root: Path) -> bool:
    """Whether the folder looks like a Pascal VOC data set."""
    return next((root / "Annotations").glob("*.xml"), None) is not None


def load_voc(root: Path, split: str) -> RecordSource:
    """Open one split of a Pascal VOC folder.

    Classes are the sorted names over all annotation files, whatever the split, numbered 1..K.
    VOC counts pixels from 1 and includes the last: (xmin, ymin, xmax, ymax) becomes
    (xmin-1, ymin-1, xmax, ymax). Objects marked difficult become crowds: ignored, as VOC does.

    Args:
        root: holds Annotations, JPEGImages and, if it has splits, ImageSets/Main.
        split: a list in ImageSets/Main ("train", "val", "test", "trainval" ...); without lists
            "train", "val" and "test" are cut by hash and "all" is everything.
    """
    defects = Defects()
    paths = sorted((root / "Annotations").glob("*.xml"))
    trees = {path.stem: _parse(path, defects) for path in paths}
    names = sorted({name for tree in trees.values() for name in _class_names(tree)})
    if not names:
        raise DataError(
            f"{root}: not one named object in {len(paths)} files of Annotations "
            f"({defects or 'all are empty'}). Check the annotations."
        )
    index = {name: place for place, name in enumerate(names)}
    images = _images(root)
    records = []
    for stem in _stems(root, split, list(trees)):
        if stem not in trees:
            defects.add("missing annotation", f"{stem}.xml")
            continue
        tree = trees[stem]
        if tree is not None:
            missing = root / "JPEGImages" / f"{stem}.jpg"
            path = images.get(stem) or images.get(_written_stem(tree)) or missing
            records.append(_record(tree, path, len(records) + 1, index, defects))
    categories = {place + 1: name for name, place in index.items()}
    return RecordSource(f"{root} ({split})", records, categories, defects)


def _parse(path: Path, defects: Defects) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, OSError, ValueError, LookupError):
        defects.add("malformed annotation file", path.name)
        return None


def _class_names(tree: ElementTree.Element | None) -> set[str]:
    entries = tree.findall("object") if tree is not None else []
    return {(entry.findtext("name") or "").strip() for entry in entries} - {""}


def _written_stem(tree: ElementTree.Element) -> str:
    return Path(tree.findtext("filename") or "").stem


def _images(root: Path) -> dict[str, Path]:
    """Image files by name without suffix; beside the XML where there is no JPEGImages."""
    folder = next(
        (root / name for name in ("JPEGImages", "images") if (root / name).is_dir()),
        root / "Annotations",
    )
    paths = sorted(folder.iterdir(), reverse=True)
    return {path.stem: path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}


def _stems(root: Path, split: str, all_stems: list[str]) -> list[str]:
    """The names of one split, in the order of its list."""
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
    if not lists:
        return split_by_hash(all_stems, split, str(root))
    for name in (split, *SPLIT_NAMES.get(split, ())):
        if name in lists:
            lines = lists[name].read_text(encoding="utf-8-sig", errors="replace").splitlines()
            stems = (_without_suffix(line.split()[0]) for line in lines if line.strip())
            return list(dict.fromkeys(stems))
    raise unknown_split(str(root / "ImageSets" / "Main"), split, list(lists))


def _without_suffix(name: str) -> str:
    return Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name


def _record(
    tree: ElementTree.Element, path: Path, image_id: int, index: dict[str, int], defects: Defects
) -> Record:
    record = Record(path=path, file_name=path.name, image_id=image_id, image_wh=_image_wh(tree))
    boxes, classes, crowds = [], [], []
    for entry in tree.findall("object"):
        place = index.get((entry.findtext("name") or "").strip())
        corners = _corners(entry)
        if place is None:
            defects.add("unknown class", f"{path.name}: an object without a name")
        elif corners is None:
            defects.add("malformed box", path.name)
        elif corners[2] <= corners[0] or corners[3] <= corners[1]:
            defects.add("zero-size or inverted box", path.name)
        else:
            x1, y1, x2, y2 = corners
            boxes.append((x1 - 1, y1 - 1, x2, y2))
            classes.append(place)
            crowds.append((entry.findtext("difficult") or "0").strip() == "1")
    record.boxes = np.array(boxes, np.float64).reshape(-1, 4)
    record.classes = np.array(classes, np.int64)
    record.is_crowd = np.array(crowds, bool)
    return record


def _image_wh(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(tree.findtext(f"size/{key}") or 0)) for key in _SIZE)
    except (ValueError, OverflowError):
        return None
    return known_size(width, height)


def _corners(entry: ElementTree.Element) -> list[float] | None:
    try:
        return [float(entry.findtext(f"bndbox/{key}") or "") for key in _CORNERS]
    except ValueError:
        return None


_SIZE = ("width", "height")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
