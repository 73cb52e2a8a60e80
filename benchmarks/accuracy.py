"""Score COCO results against a data set.

The results are those of `runtime/run_images.py`, so the score is of the artifact as it is used:
its own preprocessing, engine and suppression. Results with a `segmentation` get the AP of their
masks beside that of their boxes, and those with `keypoints` the scores of their joints.

Examples:
  python benchmarks/accuracy.py results.json --data data/mine --split val
      AP of what run_images.py wrote for the images of a split.
  python benchmarks/accuracy.py results.json --data data/mine --split val --out scores.json
      The same, written as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from runtime.contract.errors import EXIT_DONE, KestrelError, run_script
from runtime.contract.files import write_json
from runtime.contract.manual import ScriptParser


def main() -> int:
    """Print the scores; write them as JSON where asked."""
    parser = ScriptParser(__doc__)
    parser.add_argument("results", type=Path, help="what runtime/run_images.py wrote")
    parser.add_argument("--data", required=True, help="a COCO, VOC or YOLO folder, or street")
    parser.add_argument("--split", default="test", help="train, val or test")
    parser.add_argument("--images", type=Path, help="default: RESULTS.images.json, where it is")
    parser.add_argument("--out", type=Path, help="write the scores as JSON")
    args = parser.parse_args()

    from training.data import open_data
    from training.metrics.detection import coco_ground_truth, score_boxes
    from training.metrics.instance import score_masks
    from training.metrics.keypoints import score_joints

    results = _read(args.results, ("image_id",))
    has_masks = any("segmentation" in result for result in results)
    num_joints = max((len(result.get("keypoints", ())) for result in results), default=0) // 3
    if num_joints:
        truth = coco_ground_truth(_open_joints(args.data, args.split, num_joints))
    else:
        truth = coco_ground_truth(open_data(args.data, args.split, ("masks",) if has_masks else ()))
    place = args.images or args.results.with_suffix(".images.json")
    if args.images or place.is_file():
        results = _renumbered(results, _read(place, ("id", "file_name")), truth)
    bare = [{key: entry[key] for key in entry if key != "keypoints"} for entry in results]
    scores = score_joints(truth, results) if num_joints else {}
    scores |= score_boxes(truth, bare)
    if has_masks:
        scores |= score_masks(truth, bare)
    for name, value in scores.items():
        print(f"{name:28} {value:.4f}")
    print(f"{len(results)} results on {len(truth['images'])} images of {args.data} {args.split}")
    if args.out:
        known = {name: value for name, value in scores.items() if value == value}
        write_json(args.out, {"data": args.data, "split": args.split, "scores": known})
    return EXIT_DONE


def _open_joints(data: str, split: str, num_joints: int) -> Any:
    """A data set's objects that have joints; five of them are the landmarks of faces."""
    from training.data import open_data
    from training.data.jointed import Jointed
    from training.data.joints import FACE_LANDMARKS

    is_faces = num_joints == len(FACE_LANDMARKS.joints)
    return Jointed(open_data(data, split, ("landmarks" if is_faces else "keypoints",)))


def _read(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """A JSON list of objects that have these keys."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise KestrelError(f"{path} is not JSON ({error}). Run runtime/run_images.py.") from None
    if not isinstance(document, list):
        raise KestrelError(f"{path} holds no list; expected COCO results. Give the right file.")
    for place, entry in enumerate(document):
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            raise KestrelError(
                f"{path}: entry {place} is {str(entry)[:60]}; expected an object with "
                f"{' and '.join(keys)}. Give what runtime/run_images.py wrote."
            )
    return document


def _renumbered(
    results: list[dict[str, Any]], images: list[dict[str, Any]], truth: dict[str, Any]
) -> list[dict[str, Any]]:
    """Results under the data set's image ids, found by file name; other images' are left out."""
    ids = {Path(image["file_name"]).name: image["id"] for image in truth["images"]}
    renumber = {image["id"]: ids.get(Path(image["file_name"]).name) for image in images}
    covered = {new for new in renumber.values() if new is not None}
    if len(covered) < len(ids):
        raise KestrelError(
            f"the results cover {len(covered)} of the split's {len(ids)} images; expected all. "
            "Run runtime/run_images.py on the folder that holds them."
        )
    foreign = [entry["image_id"] for entry in results if entry["image_id"] not in renumber]
    if foreign:
        raise KestrelError(
            f"{len(foreign)} results are of image ids (such as {foreign[0]!r}) that the "
            f"list of images ({len(renumber)} ids) does not have; expected the list that was "
            "written with these results. Give it by --images."
        )
    return [
        {**entry, "image_id": renumber[entry["image_id"]]}
        for entry in results
        if renumber[entry["image_id"]] is not None
    ]


if __name__ == "__main__":
    sys.exit(run_script(main))
