"""The door to every data set: by the name of a built-in one, or by the path of a folder."""

from __future__ import annotations

from pathlib import Path

from training.data.coco import has_splits, is_lone_file, load_coco
from training.data.sample import DataError, Source
from training.data.voc import find_voc, load_voc
from training.data.yolo import find_yolo, load_yolo


def open_data(data: str | Path, split: str) -> Source:
    """Open one split of a data set.

    Args:
        data: "street" for the built-in procedural street; else the path of a COCO, Pascal VOC or
            YOLO folder, of a COCO .json, or of a YOLO data.yaml. ("./street" is a folder.)
        split: "train", "val" or "test". A data set without splits is cut 80/10/10 by hash of the
            file name (said in a log line), and "all" is the whole of it.
    """
    if data == "street":
        from training.data.street import Street

        return Street(split)
    root = Path(data).expanduser()
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
    if find_voc(root):
        return load_voc(root, split)
    if has_splits(root):
        return load_coco(root, split)
    if find_yolo(root):
        return load_yolo(root, split)
    if is_lone_file(root):
        return load_coco(root, split)
    raise DataError(
        f"{root}: not a data set known here; looked for COCO (annotations/instances_{split}*.json, "
        f"{split}/_annotations.coco.json, one *.json), Pascal VOC (Annotations/*.xml) and YOLO "
        "(data.yaml, images/ with labels/)."
    )
