"""Make the pictures of README.md: the shipped networks on frames of the rendered street.

Bundles, frames and full-size pictures go to out/pictures and are taken from there the next time.

Examples:
  python assets/make_pictures.py
      Writes detections.jpg, masks.jpg, poses.jpg and faces.jpg beside this script.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2

from runtime.contract.errors import run_script
from runtime.contract.manual import ScriptParser

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "out" / "pictures"
NUM_FRAMES = 57  # of the street's test split, which nothing was trained on
SHOWN_WH = (960, 540)
QUALITY = 85  # of JPEG: each picture stays below 200 kB
# Picture, frame of the split, model, and the model for joints behind it.
PICTURES = (
    ("detections", 56, "retinanet", None),
    ("masks", 30, "yolact", None),
    ("poses", 1, "retinanet", "hourglass"),
    ("faces", 53, "retinaface", None),
)
SCORE_THRESHOLD = 0.4


def run(*words: str | Path) -> None:
    """Run one of the project's scripts; its failure ends this one with the same status."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def bundle_of(model: str) -> Path:
    """The bundle of a shipped checkpoint, exported where it is not there yet."""
    out = WORK / model
    if not out.is_dir():
        run("export/to_onnx.py", "--model", model, "--precision", "fp32", "--out", out)
    return out


def main() -> int:
    """Make all pictures."""
    ScriptParser(__doc__).parse_args()
    frames = WORK / "street"
    if not frames.is_dir():
        which = ("--split", "test", "--num-images", str(NUM_FRAMES), "--size", "1280x720")
        run("training/make_street.py", *which, "--out", frames)
    for name, number, model, pose in PICTURES:
        frame = frames / "images" / f"test_{number:06d}.jpg"
        words = [
            bundle_of(model),
            frame,
            "--out",
            WORK / f"{name}.json",
            "--annotated",
            WORK / name,
        ]
        words += ["--score-threshold", str(SCORE_THRESHOLD)]
        run("runtime/run_images.py", *words, *(("--pose", bundle_of(pose)) if pose else ()))
        drawn = cv2.imread(str(WORK / name / frame.name))
        shown = cv2.resize(drawn, SHOWN_WH, interpolation=cv2.INTER_AREA)
        target = Path(__file__).with_name(f"{name}.jpg")
        cv2.imwrite(str(target), shown, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        print(f"wrote {target}, {target.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
