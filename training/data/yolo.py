"""YOLO data sets: data.yaml, one text file an image, coordinates as fractions of the image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from training.data.records import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    Defects,
    Record,
    RecordSource,
    split_by_hash,
    unknown_split,
)
from training.data.sample import DataError


def find_yolo(root: Path) -> bool:
    """Whether the folder looks like a YOLO data set."""
    if _yaml_file(root) is not None:
        return True
    return (root / "labels").is_dir() and (root / "images").is_dir()


def load_yolo(root: Path, split: str) -> RecordSource:
    """Open one split of a YOLO folder.

    Rows are ``class cx cy w h``, or ``class x1 y1 x2 y2 x3 y3 ...`` (a polygon: its box, and a
    mask), or a box and its keypoints where data.yaml has a ``kpt_shape``. An image without a
    label file is a negative. Category ids are 1..K in the order of ``names``.

    Args:
        root: the folder, or its data.yaml.
        split: "train", "val", "test"; without splits they are cut by hash; "all" is everything.
    """
    path = root if root.is_file() else _yaml_file(root)
    settings = read_yaml(path) if path is not None else {}
    base = _base(path.parent if path is not None else root, settings)
    names = _class_names(settings, base, path)
    shape = settings.get("kpt_shape")
    joints = _kpt_shape(shape, path) if shape else (0, 0)
    defects = Defects()
    records = []
    for image_path, folder in _images(base, settings, split).items():
        shown = image_path.relative_to(folder) if folder in image_path.parents else image_path.name
        record = Record(
            path=image_path, file_name=str(shown), image_id=len(records) + 1, is_normalised=True
        )
        _fill(record, _label_file(image_path), len(names), joints, defects)
        records.append(record)
    categories = {place + 1: name for place, name in enumerate(names)}
    keys = tuple(f"joint{place}" for place in range(joints[0]))
    source = RecordSource(f"{base} ({split})", records, categories, defects, joints=keys)
    source.flip_pairs = _flip_pairs(settings.get("flip_idx"), joints[0], path)
    return source


def _yaml_file(root: Path) -> Path | None:
    """data.yaml, or the one other file of the folder that has ``names``."""
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (root / name).is_file():
            return root / name
    paths = [*root.glob("*.yaml"), *root.glob("*.yml")]
    named = [path for path in paths if re.search(r"^names\s*:", _text(path), re.MULTILINE)]
    return named[0] if len(named) == 1 else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


def read_yaml(path: Path) -> dict:
    """Read data.yaml: with PyYAML where it is installed, else the small part these files use."""
    try:
        import yaml
    except ImportError:
        return parse_simple_yaml(_text(path))
    try:
        content = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise DataError(f"{path} is not YAML: {line}. Expected train, val and names.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys; expected train, val and names.")
    return content


def parse_simple_yaml(text: str) -> dict:
    """Parse keys with scalars, lists in brackets or with dashes, and one level of numbered keys."""
    result: dict = {}
    key = ""
    for raw in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        body = line.strip()
        if not body:
            continue
        if body.startswith("- "):
            if not isinstance(result.get(key), list):
                result[key] = []
            result[key].append(_scalar(body[2:]))
        elif line[0].isspace():
            name, _, value = body.partition(":")
            if not isinstance(result.get(key), dict):
                result[key] = {}
            result[key][_scalar(name)] = _scalar(value)
        else:
            key, _, value = body.partition(":")
            key = str(_scalar(key))
            result[key] = _scalar(value)
    return result


def _scalar(text: str) -> str | int | list | dict | None:
    text = text.strip()
    if text[:1] == "[" and text[-1:] == "]":
        return [_scalar(part) for part in text[1:-1].split(",") if part.strip()]
    if text[:1] == "{" and text[-1:] == "}":
        pairs = (part.partition(":") for part in text[1:-1].split(",") if part.strip())
        return {_scalar(name): _scalar(value) for name, _, value in pairs}
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return text or None


def _base(folder: Path, settings: dict) -> Path:
    """What the paths in data.yaml are relative to."""
    written = settings.get("path")
    base = folder / str(written) if written else folder
    return base if base.is_dir() else folder


def _class_names(settings: dict, base: Path, path: Path | None) -> list[str]:
    names = settings.get("names")
    if isinstance(names, dict) and names:
        if not all(str(key).strip().isdecimal() for key in names):
            raise DataError(
                f"{path}: names has the keys {', '.join(map(str, names))[:80]}; expected class "
                "numbers 0, 1, 2 ... Correct data.yaml."
            )
        return [str(names[key]) for key in sorted(names, key=int)]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    for listed in (base / "classes.txt", base / "labels" / "classes.txt", base / "obj.names"):
        if listed.is_file():
            return [line.strip() for line in _text(listed).splitlines() if line.strip()]
    raise DataError(
        f"{path or base}: no class names; expected a list `names` in data.yaml or a classes.txt. "
        "Add one, in the order of the class numbers."
    )


def _kpt_shape(shape: object, path: Path | None) -> tuple[int, int]:
    if isinstance(shape, list) and len(shape) == 2 and shape[0] > 0 and shape[1] in (2, 3):
        return shape[0], shape[1]
    raise DataError(f"{path}: kpt_shape is {shape}; expected [number of joints, 2 or 3].")


def _flip_pairs(order: object, num: int, path: Path | None) -> tuple[tuple[int, int], ...]:
    """Pairs of joints that change places in a mirror, from what comes into each one's place."""
    if not order or not num:
        return ()
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(map(str, range(num))):
        raise DataError(
            f"{path}: flip_idx is {order}; expected the numbers 0 to {num - 1}, each once. "
            "Correct or remove it."
        )
    return tuple((place, other) for place, other in enumerate(order) if place < other)


def _images(base: Path, settings: dict, split: str) -> dict[Path, Path]:
    """Image files of one split, each with the folder that its name is relative to."""
    wanted = SPLIT_NAMES.get(split, (split,))
    listed = [name for names in SPLIT_NAMES.values() for name in names if settings.get(name)]
    for name in wanted:
        if settings.get(name):
            entries = settings[name] if isinstance(settings[name], list) else [settings[name]]
            found: dict[Path, Path] = {}
            for entry in entries:
                found |= _listing(base, str(entry), name)
            return found
    places = {
        name: place
        for names in SPLIT_NAMES.values()
        for name in names
        for place in (base / "images" / name, base / name / "images")
        if place.is_dir()
    }
    for name in wanted:
        if name in places:
            return _folder_images(places[name])
    if listed or places:
        raise unknown_split(str(base), split, [*listed, *places])
    by_name = {str(path): path for path in _folder_images(base / "images")}
    relative = {str(path.relative_to(base)): key for key, path in by_name.items()}
    chosen = split_by_hash(list(relative), split, str(base))
    return {by_name[relative[name]]: base / "images" for name in chosen}


def _listing(base: Path, entry: str, split: str) -> dict[Path, Path]:
    """The images of one entry of data.yaml: a folder, or a text file with a path a line."""
    trimmed = re.sub(r"^(\.\./)+", "", entry)  # exporters write ../train/images for train/images
    candidates = (base / entry, base / trimmed, base / split / "images")
    place = next((path for path in candidates if path.exists()), None)
    if place is None:
        raise DataError(
            f"{base / entry}: named by data.yaml for {split}, but it is not there. "
            "Correct the path in data.yaml."
        )
    if place.is_dir():
        return _folder_images(place)
    lines = [line.strip() for line in _text(place).splitlines() if line.strip()]
    return {_listed_image(line, base, place.parent): base / "images" for line in lines}


def _listed_image(line: str, base: Path, folder: Path) -> Path:
    candidates = (folder / line, base / line)
    return next((path for path in candidates if path.is_file()), candidates[0])


def _folder_images(folder: Path) -> dict[Path, Path]:
    paths = sorted(folder.rglob("*")) if folder.is_dir() else []
    return {path: folder for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}


def _label_file(image_path: Path) -> Path:
    """.../images/a/b.jpg has .../labels/a/b.txt; elsewhere the text lies beside the image."""
    parts = list(image_path.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts)


def _fill(
    record: Record, path: Path, num_classes: int, joints: tuple[int, int], defects: Defects
) -> None:
    """Put the rows of one label file into a record."""
    boxes, classes, outlines, keypoints = [], [], [], []
    for number, line in enumerate(_text(path).splitlines() if path.is_file() else (), start=1):
        row = _row(line)
        place = f"{path.name}:{number}"
        if not line.strip():
            continue
        if row is None or not _is_row(len(row), joints):
            defects.add("malformed line", place)
        elif row[0] != int(row[0]) or not 0 <= row[0] < num_classes:
            defects.add("unknown class", f"{place}: {line.split()[0]}")
        else:
            is_polygon = len(row) > 5 and not joints[0]
            corners = row[1:].reshape(-1, 2) if is_polygon else row[1:5].reshape(2, 2)
            low, high = corners.min(axis=0), corners.max(axis=0)
            if not is_polygon:
                low, high = corners[0] - corners[1] / 2, corners[0] + corners[1] / 2
            boxes.append((*low, *high))
            classes.append(int(row[0]))
            drawable = is_polygon and np.isfinite(corners).all()
            outlines.append([corners] if drawable else None)
            keypoints.append(_joints(row, joints))
    record.boxes = np.array(boxes, np.float64).reshape(-1, 4)
    record.classes = np.array(classes, np.int64)
    record.is_crowd = np.zeros(len(boxes), bool)
    record.outlines = outlines
    if joints[0]:
        record.keypoints = np.array(keypoints, np.float64).reshape(-1, joints[0], 3)


def _row(line: str) -> np.ndarray | None:
    try:
        row = np.array([float(part) for part in line.split()])
    except ValueError:
        return None
    return row if len(row) and np.isfinite(row[0]) else None


def _is_row(length: int, joints: tuple[int, int]) -> bool:
    if joints[0]:
        return length in (5, 5 + joints[0] * joints[1])
    return length == 5 or (length >= 7 and length % 2 == 1)


def _joints(row: np.ndarray, joints: tuple[int, int]) -> np.ndarray:
    """(J, 3) of one row; without a visibility column, a joint at (0, 0) is not labelled."""
    num, columns = joints
    keypoints = np.zeros((num, 3))
    if num and len(row) > 5:
        values = row[5:].reshape(num, columns)
        keypoints[:, :columns] = values
        if columns == 2:
            keypoints[:, 2] = 2.0 * values.any(axis=1)
    return keypoints
