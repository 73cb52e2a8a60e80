r"""Run a bundle over images and write COCO results.

Results are a list of {"image_id", "category_id", "bbox", "score"}, as COCO's evaluators read it;
of a task with masks also "segmentation", compressed run lengths, of one with joints "keypoints".
Image ids: with --image-ids those of a COCO annotation file, by file name, and images that it does
not name are left out; else 1, 2, 3 ... in the order of the names, and `results.images.json` beside
the results says which is which.

Examples:
  python runtime/run_images.py runs/retinanet photos --out results.json
      All images of a folder.
  python runtime/run_images.py runs/yolact "photos/*.jpg" --out results.json --annotated drawn
      A pattern, and the images with masks drawn in.
  python runtime/run_images.py runs/retinanet photos --pose runs/hourglass --out results.json
      With the joints of the people that were found.
  python runtime/run_images.py runs/retinanet photos --image-ids val.json --score-threshold 0.01 \
      --out results.json
      For benchmarks/accuracy.py: ids of a data set, and low scores as well.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import runtime
from runtime.contract.errors import EXIT_DONE, SinkError, SourceError, run_script
from runtime.contract.files import replacing, write_json
from runtime.contract.manual import ScriptParser
from runtime.pipeline.sources import image_decoding as decoding
from runtime.predictor import Predictor
from runtime.preprocess import Frame
from runtime.results import Detections
from runtime.sessions import BACKEND_NAMES

_GLOB_SIGNS = "*?["
_NAMES_SHOWN = 5
_WRITTEN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class ImageFile:
    """One image to run.

    Attributes:
        name: relative to the folder that was given, with forward slashes; what ids go by.
        path: where it lies.
        is_explicit: named by the user himself, so that it must be readable.
    """

    name: str
    path: Path
    is_explicit: bool = False


@dataclass
class Tally:
    """What a run came to."""

    results: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; the exit status."""
    options = _parse(arguments)
    out = Path(options.out)
    files = find_images(options.images)
    _check_targets(out, files, options)
    ids = _match_annotations(files, Path(options.image_ids)) if options.image_ids else None
    if ids is not None:
        files = [file for file in files if file.name in ids]
    if files[0].is_explicit:
        read_image(files[0])  # so that a bad one is known before an engine is built
    with _load(options) as predictor:
        engine = predictor.detector if isinstance(predictor, runtime.TopDown) else predictor
        print(f"{engine.backend} on {engine.device}, {engine.precision}")
        started = time.perf_counter()
        tally = _run(predictor, files, ids, options)
        seconds = time.perf_counter() - started
    _report_skipped(tally.skipped)
    if not tally.images:
        raise SourceError(
            f"none of the {len(files)} files of {options.images} is an image that can be read. "
            "Check the path."
        )
    write_json(out, tally.results, indent=None)
    if ids is None:
        write_json(out.with_suffix(".images.json"), tally.images)
    count = len(tally.images)
    print(
        f"{count} images, {len(tally.results)} detections, {count / seconds:.1f} images/s -> {out}"
    )
    return EXIT_DONE


def _load(options: argparse.Namespace) -> Predictor | runtime.TopDown:
    asked = options.inference_precision
    engine: dict[str, Any] = {} if asked is None else {"inference_precision": asked}
    engine |= {"backend": options.backend, "precision": options.precision}
    engine |= {"allow_unverified": options.allow_unverified}
    engine |= {"schedule": "key"}  # images have nothing to do with each other
    if options.pose is None:
        return runtime.load(options.bundle, **engine)
    return runtime.load_topdown(options.bundle, options.pose, **engine)


def find_images(pattern: str) -> list[ImageFile]:
    """The files of a folder, a glob or one file, sorted by name.

    Raises:
        SourceError: nothing there.
    """
    path = Path(pattern)
    if path.is_file():
        return [ImageFile(path.name, path, is_explicit=True)]
    if path.is_dir():
        found = [each for each in path.iterdir() if each.is_file() and each.name[0] != "."]
        root = path
    elif any(sign in pattern for sign in _GLOB_SIGNS):
        found = [Path(each) for each in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        found = [each for each in found if each.is_file()]
        root = Path(os.path.commonpath([each.parent for each in found])) if found else path
    else:
        raise SourceError(
            f"{pattern} does not exist; expected an image, a folder of images or a glob."
        )
    if not found:
        raise SourceError(f"{pattern} holds no files; expected images. Check the path.")
    return [ImageFile(each.relative_to(root).as_posix(), each) for each in sorted(found)]


def read_image(file: ImageFile) -> Frame:
    """Decode one image as (h, w, 3) BGR, in its full size; SourceError where it is none."""
    return decoding.read_image(file.path, largest_pixels=decoding.LARGEST_FILE_PIXELS)


def read_image_ids(path: Path) -> dict[str, int]:
    """{file_name: id} of a COCO annotation file.

    Raises:
        SourceError: no such file, or of another kind.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        ids = {str(image["file_name"]): int(image["id"]) for image in document["images"]}
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist; expected COCO annotations.") from None
    except (ValueError, KeyError, TypeError):
        raise SourceError(
            f"{path} is no COCO annotation file; expected JSON with 'images' that have "
            "'file_name' and 'id'."
        ) from None
    return ids


def _run(
    predictor: Predictor | runtime.TopDown,
    files: list[ImageFile],
    ids: dict[str, int] | None,
    options: argparse.Namespace,
) -> Tally:
    """Run all files; while one is in the engine the next is read."""
    tally = Tally()
    progress = _Progress(len(files))
    category_ids = predictor.manifest.category_ids

    def take(file: ImageFile, frame: Frame, ticket: Any) -> None:
        detections = ticket.result()
        image_id = len(tally.images) + 1 if ids is None else ids[file.name]
        height, width = frame.shape[:2]
        tally.images.append(
            {"id": image_id, "file_name": file.name, "width": width, "height": height}
        )
        tally.results += detections.to_coco(image_id, category_ids)
        if options.annotated:
            _write_annotated(Path(options.annotated), file, frame, detections, predictor.draw)
        progress.step()

    waiting: tuple[ImageFile, Frame, Any] | None = None
    for file, frame in _read_all(files, tally.skipped):
        ticket = predictor.submit(frame, options.score_threshold, options.iou_threshold)
        if waiting is not None:
            take(*waiting)
        waiting = (file, frame, ticket)
    if waiting is not None:
        take(*waiting)
    progress.end()
    return tally


def _read_all(files: list[ImageFile], skipped: list[str]) -> Iterator[tuple[ImageFile, Frame]]:
    for file in files:
        try:
            frame = read_image(file)
        except SourceError:
            if file.is_explicit:
                raise
            skipped.append(file.name)
            continue
        yield file, frame


def match_ids(files: list[ImageFile], ids: dict[str, int]) -> dict[str, int]:
    """{name: id} of the files that the annotations name.

    Names are compared whole, else without their folders where that is unambiguous.
    """
    bare_names = [Path(name).name for name in ids]
    is_unique = len(set(bare_names)) == len(bare_names)
    bare = dict(zip(bare_names, ids.values(), strict=True)) if is_unique else {}
    found = {file.name: ids.get(file.name, bare.get(file.path.name)) for file in files}
    return {name: number for name, number in found.items() if number is not None}


def _match_annotations(files: list[ImageFile], origin: Path) -> dict[str, int]:
    """{name: id} of the files that the annotations name; what is left out is said."""
    ids = read_image_ids(origin)
    known = match_ids(files, ids)
    if not known:
        raise SourceError(
            f"{origin} names none of the {len(files)} files, such as {files[0].name!r}; "
            f"it names {next(iter(ids), 'nothing')!r}. Give the folder that belongs to it."
        )
    if len(known) < len(files):
        _warn(f"{len(files) - len(known)} files are not named in {origin} and are left out")
    if len(known) < len(ids):
        _warn(f"{len(ids) - len(known)} images of {origin} are not there and count as missed")
    return known


def _write_annotated(
    folder: Path,
    file: ImageFile,
    frame: Frame,
    detections: Detections,
    draw: Callable[[Frame, Detections], Frame],
) -> None:
    import cv2

    target = _annotated_place(folder, file)
    with replacing(target) as temporary:
        is_encoded, data = cv2.imencode(target.suffix, draw(frame, detections))
        assert is_encoded
        temporary.write_bytes(data.tobytes())


def _annotated_place(folder: Path, file: ImageFile) -> Path:
    """Where an annotated image goes; kinds that cannot be written become JPEG."""
    target = folder / file.name
    if target.suffix.lower() not in _WRITTEN_SUFFIXES:
        target = target.with_name(f"{target.name}.jpg")
    return target


def _check_targets(out: Path, files: Sequence[ImageFile], options: argparse.Namespace) -> None:
    """Find out before the run what would be regretted after it."""
    if out.is_dir():
        raise SinkError(f"--out {out} is a folder; expected a file such as {out}/results.json.")
    bundle = Path(options.bundle)
    read = {file.path.resolve() for file in files}
    read |= {each.resolve() for each in (bundle.iterdir() if bundle.is_dir() else [bundle])}
    targets = [out, out.with_suffix(".images.json")]
    if options.image_ids:
        read.add(Path(options.image_ids).resolve())
        targets.pop()
    if options.annotated:
        targets += [_annotated_place(Path(options.annotated), file) for file in files]
    for target in targets:
        if target.resolve() in read:
            raise SinkError(
                f"output {target} is a file that this run reads; it would be overwritten. "
                "Choose another place."
            )
    if not options.annotated:
        return
    annotated = Path(options.annotated)
    if annotated.exists() and not annotated.is_dir():
        raise SinkError(f"--annotated {annotated} is a file; expected a folder.")
    given = Path(options.images)
    source = given if given.is_dir() else given.parent
    if annotated.resolve() == source.resolve():
        raise SinkError(
            f"--annotated {annotated} is where the images lie, which would be overwritten. "
            "Give another folder."
        )


class _Progress:
    """A line on stderr, renewed twice a second where stderr is a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._started = self._shown = time.perf_counter()
        self._is_live = sys.stderr.isatty()

    def step(self) -> None:
        self._done += 1
        now = time.perf_counter()
        if now - self._shown >= (0.5 if self._is_live else 30.0):
            self._shown = now
            rate = self._done / (now - self._started)
            text = f"{self._done}/{self._total} images, {rate:.1f} images/s"
            print(text, end="\r" if self._is_live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._is_live:
            print(" " * 60, end="\r", file=sys.stderr, flush=True)


def _report_skipped(names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:_NAMES_SHOWN])
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        _warn(f"skipped {len(names)} files that are no images: {shown}{more}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("bundle", help="a bundle's folder, or one .onnx file")
    parser.add_argument("images", help="an image, a folder of images, or a glob in quotes")
    parser.add_argument("--out", required=True, help="where the COCO results go (JSON)")
    parser.add_argument("--annotated", help="folder for the images with results drawn in")
    parser.add_argument("--image-ids", help="COCO annotations that give each file name its id")
    group = parser.add_argument_group("networks")
    group.add_argument("--pose", help="bundle that finds the joints of the people that are found")
    group.add_argument(
        "--backend",
        default="auto",
        choices=("auto", *BACKEND_NAMES),
        help="default: the first that works",
    )
    group.add_argument("--precision", help="one of the bundle's; default: fp16 on GPU, else fp32")
    group.add_argument(
        "--inference-precision",
        choices=("f32", "bf16", "auto"),
        help="of float layers in OpenVINO; auto: bf16 where the CPU has it; default: f32",
    )
    group.add_argument("--score-threshold", type=float, help="0..1; default: the bundle's")
    group.add_argument("--iou-threshold", type=float, help="0..1; default: the bundle's")
    group.add_argument(
        "--allow-unverified", action="store_true", help="run what failed its verification"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_script(main))
