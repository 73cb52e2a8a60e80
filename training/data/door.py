"""The door to every data set: by the name of a built-in one, or by the path of a folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from training.data.coco import has_splits, is_lone_file, load_coco
from training.data.records import RecordSource
from training.data.sample import DataError, Source
from training.data.voc import find_voc, load_voc
from training.data.wider import find_wider, load_wider
from training.data.yolo import find_yolo, load_yolo

logger = logging.getLogger("kestrel.data")


def open_data(data: str | Path, split: str, labels: Sequence[str] = ()) -> Source:
    """Open one split of a data set.

    Args:
        data: "street" for the built-in procedural street; else the path of a COCO, Pascal VOC,
            YOLO or WIDER FACE folder, of a COCO .json, or of a YOLO data.yaml. ("./street" is a
            folder.)
        split: "train", "val" or "test". A data set without splits is cut 80/10/10 by hash of the
            file name (said in a log line), and "all" is the whole of it.
        labels: what samples have to carry beside boxes, such as ("masks",). A folder that has
            none of them is a DataError; one that has them gives them asked or not, the street
            only if asked. "landmarks" turns the street's objects into faces; of a folder they are
            keypoints as any other.
    """
    if data == "street":
        if "landmarks" in labels:
            from training.data.street import StreetFaces

            return StreetFaces(split, labels=("boxes", *labels))
        from training.data.street import Street

        return Street(split, labels=("boxes", *labels))
    wants_joints = bool({"keypoints", "landmarks"} & {*labels})
    source = _open_files(Path(data).expanduser(), split, wants_joints)
    if "masks" in labels:
        _expect_masks(source)
    if wants_joints and not source.joints:
        raise DataError(
            f"{source.name} has no keypoints; expected COCO with `keypoints`, YOLO with a "
            "`kpt_shape` or WIDER FACE with landmarks. Give such a data set, or street."
        )
    return source


def _open_files(root: Path, split: str, wants_joints: bool) -> RecordSource:
    if root.is_file():
        if root.suffix.lower() == ".json":
            return load_coco(root, split)
        if root.suffix.lower() in (".yaml", ".yml"):
            return load_yolo(root, split)
        raise DataError(
            f"{root}: a data set is a folder, a COCO .json or a YOLO data.yaml, not a "
            f"{root.suffix or 'bare'} file. Name one of these, or street."
        )
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Name a data set's folder, or street.")
    if find_wider(root):
        return load_wider(root, split)
    if find_voc(root):
        return load_voc(root, split)
    if has_splits(root):
        return load_coco(root, split, wants_joints=wants_joints)
    if find_yolo(root):
        return load_yolo(root, split)
    if is_lone_file(root):
        return load_coco(root, split)
    raise DataError(
        f"{root}: not a data set known here; looked for COCO (annotations/instances_{split}*.json, "
        f"{split}/_annotations.coco.json, one *.json), Pascal VOC (Annotations/*.xml), YOLO "
        f"(data.yaml, images/ with labels/) and WIDER FACE ({split}/label.txt)."
    )


def _expect_masks(source: RecordSource) -> None:
    """Refuse a data set without any outline; say how many objects of another have none."""
    if not source.has_masks:
        raise DataError(
            f"{source.name} has boxes but no masks; expected COCO with `segmentation` or YOLO with "
            "polygon rows. Give such a data set, or street."
        )
    outlines = [outline for record in source.records for outline in record.outlines or ()]
    num_bare = sum(outline is None for outline in outlines)
    if num_bare:
        logger.warning(
            "%s: %d of %d objects have no outline; their masks are their boxes",
            source.name,
            num_bare,
            len(outlines),
        )
