r"""Turn a published checkpoint of YOLACT, YolactEdge (also for video) or RetinaFace into ours.

Slim and RFB of RetinaFace's family are taken, too. The scripts of export/ take such files as they
are; this is for files of other classes, and to train on.

Examples:
  python training/import_published.py yolact_resnet50_54_800000.pth --out yolact_coco.safetensors
      COCO's 80 classes, as its authors trained it.
  python training/import_published.py yolact_mine.pth --classes screw,nut,washer \
      --out mine.safetensors
      A checkpoint that was trained on classes of one's own with the authors' code.
  python training/import_published.py mobilenet0.25_Final.pth --size 640 --out faces.safetensors
      Faces with five landmarks.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.errors import TrainingError, run_script
from training.manual import ScriptParser

MIN_SIZE, MAX_SIZE = 64, 4096


def main() -> int:
    """Write the checkpoint in this project's format; exit status 0."""
    parser = ScriptParser(__doc__)
    parser.add_argument("file", type=Path, help="as downloaded: yolact_resnet50_54_800000.pth ...")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--size", type=int, help="side of its input; default: by the file's name")
    parser.add_argument(
        "--classes", help="names in order, with commas; default: those of its authors' data"
    )
    args = parser.parse_args()
    if args.size is not None and not MIN_SIZE <= args.size <= MAX_SIZE:
        raise TrainingError(
            f"--size {args.size} is no side of an input; expected {MIN_SIZE} to {MAX_SIZE}, such "
            "as 700. Leave it out for 550."
        )
    if args.out.exists():
        raise TrainingError(f"{args.out} exists; nothing was changed. Choose another --out.")

    from training.loop.checkpoint import describe_origin, save_release
    from training.published import (
        import_published,
        published_model,
        read_published,
        size_in_name,
    )

    classes = tuple(name.strip() for name in args.classes.split(",")) if args.classes else ()
    size = args.size or size_in_name(args.file)
    tensors = read_published(args.file)
    model = import_published(tensors, size=size, classes=classes)
    name = published_model(tensors)
    assert name is not None, "import_published refuses what is not known"
    origin = describe_origin(args.file, name)
    if classes:
        origin["data"] = "its authors' own"
    save_release(args.out, name, model, training=origin, scores={})
    print(f"{args.out}: {name} {model.spec.variant}, {len(model.spec.classes)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
