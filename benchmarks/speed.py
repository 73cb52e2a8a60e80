"""Compare PyTorch, ONNX Runtime and OpenVINO on one network: a table and a JSON record.

All run in one go, in interleaved rounds, on the same frames, from a uint8 picture of network size
to detections in NumPy: normalisation, network, decode, selection and suppression are in it; reading
and resizing the frame are not. Ratios are against ONNX Runtime in float32.

With --drawn the runtime is measured from a frame of that size to the frame with its results drawn:
fitting it into the network's input, engine, results in source pixels, masks, boxes and labels.

Examples:
  python benchmarks/speed.py runs/retinanet
      Every backend and precision that is here.
  python benchmarks/speed.py runs/retinanet --checkpoint weights/retinanet_small.safetensors
      PyTorch beside them, eager and compiled.
  python benchmarks/speed.py runs/yolact --drawn 1280x720 --threads 2 --out speed.json
      From the camera's frame to drawn masks, with two threads each, and a record.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.measure.fingerprint import describe_bundle, describe_libraries, describe_machine
from benchmarks.measure.looping import open_looping
from benchmarks.measure.peers import Frames, Peer, RuntimePeer, TorchPeer
from benchmarks.measure.rounds import Series, compare, run_rounds
from benchmarks.report.speed import format_speed_table
from runtime.contract.bundle import Bundle, hash_file
from runtime.contract.errors import EXIT_DONE, KestrelError, SessionError, run_script
from runtime.contract.files import write_json
from runtime.contract.manual import ScriptParser
from runtime.pipeline.sinks.base import check_target
from runtime.preprocess import Letterbox
from runtime.sessions.cpu_flags import is_bf16_fast

SCHEMA = 1
NUM_FRAMES = 8
FRAME_STEP = 3  # of the source's frames: neighbours are much alike
REFERENCE = "onnxruntime fp32"
MEASURED = "uint8 picture of network size to detections in NumPy; batch 1"
MEASURED_DRAWN = "frame to the frame with its results drawn; batch 1"


@dataclass(frozen=True)
class Entry:
    """A peer: PyTorch where it has no backend.

    Attributes:
        name: in the table.
        backend, precision, options: of the runtime.
        torch: arguments of training/serve_forward.py.
        is_bf16: needs a CPU that computes in bf16.
    """

    name: str
    backend: str = ""
    precision: str = "fp32"
    options: dict[str, Any] = field(default_factory=dict)
    torch: tuple[str, ...] = ()
    is_bf16: bool = False


SPIN = {"spin": True}  # ONNX Runtime alone on a machine is faster so; its threads rest after a turn
BF16 = {"inference_precision": "bf16"}  # of what is float in the file
ENTRIES = (
    Entry("pytorch eager fp32"),
    Entry("pytorch eager bf16", torch=("--precision", "bf16"), is_bf16=True),
    Entry("pytorch compile fp32", torch=("--compile",)),
    Entry("pytorch compile bf16", torch=("--compile", "--precision", "bf16"), is_bf16=True),
    Entry(REFERENCE, "onnxruntime", options={"device": "cpu", **SPIN}),
    Entry("onnxruntime int8", "onnxruntime", "int8", {"device": "cpu", **SPIN}),
    Entry("openvino fp32", "openvino"),
    Entry("openvino bf16", "openvino", options=BF16, is_bf16=True),
    Entry("openvino int8", "openvino", "int8"),
    Entry("openvino int8, bf16", "openvino", "int8", BF16, is_bf16=True),
)


def main(argv: list[str] | None = None) -> int:
    """Measure and report. Exit status 0, or 2 where something was not usable."""
    args = _parse(argv)
    if args.out is not None:
        check_target(args.out, suffixes=(".json",))
    bundle = Bundle.open(args.bundle, allow_unverified=True)
    if args.checkpoint is not None:
        _check_checkpoint(bundle, args.checkpoint)
    machine = describe_machine()  # before we make it busy
    frames = _read_frames(args.source, bundle, args.drawn)
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        peers = _open_peers(args, bundle, frames, left_out, stack)
        measured = run_rounds(
            peers,
            num_frames=len(frames),
            num_rounds=args.rounds,
            turn_s=args.turn_seconds,
            rest_s=args.rest_seconds,
            report=lambda line: print(line, file=sys.stderr),
        )
        reference = peers[REFERENCE]
        assert isinstance(reference, RuntimePeer)
        described = describe_bundle(reference.predictor, args.bundle)
        facts = {name: peer.facts for name, peer in peers.items()}
    for key in ("backend", "device", "precision", "verdict"):  # of one peer only
        described.pop(key)
    document = {
        "schema": SCHEMA,
        "kind": "speed",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/speed.py", *(argv or sys.argv[1:])]),
        "notices": _notices(machine),
        "peers": {
            name: _describe(name, series, measured[REFERENCE], facts[name], bundle)
            for name, series in measured.items()
        },
        "left_out": left_out,
        "settings": {
            "measured": MEASURED if args.drawn is None else MEASURED_DRAWN,
            "frame_wh": [frames.shape[2], frames.shape[1]],
            "reference": REFERENCE,
            "source": args.source,
            "frames": len(frames),
            "rounds": args.rounds,
            "turn_s": args.turn_seconds,
            "rest_s": args.rest_seconds,
            "threads": args.threads,
            "score_threshold": bundle.manifest.defaults.score_threshold,
            "training_data": bundle.manifest.training.get("data", ""),
        },
        "bundle": described,
        "machine": {**machine, "load_average_after": describe_machine()["load_average"]},
        "libraries": describe_libraries(),
    }
    _report(document, args.out)
    return EXIT_DONE


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("bundle", help="a bundle's folder")
    parser.add_argument(
        "--checkpoint", type=Path, help="that the bundle was made of: adds PyTorch to the table"
    )
    parser.add_argument("--source", default="street", help="frames: video, images, or street")
    parser.add_argument("--peers", nargs="+", metavar="WORD", help="only those with such a word")
    parser.add_argument(
        "--drawn", type=_parse_size, metavar="WIDTHxHEIGHT", help="frame of this size to drawing"
    )
    parser.add_argument("--rounds", type=int, default=12, help="turns of each; default 12")
    parser.add_argument("--turn-seconds", type=float, default=1.0, help="of a peer a round; 1")
    parser.add_argument("--rest-seconds", type=float, default=0.3, help="before a turn; 0.3")
    parser.add_argument("--threads", type=int, help="of every peer; default: their own choice")
    parser.add_argument("--out", type=Path, help="the record, a .json file")
    parser.add_argument(
        "--allow-unverified", action="store_true", help="run what failed its verification"
    )
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.turn_seconds <= 0 or args.rest_seconds < 0:
        parser.error("expected --rounds of 1 or more, and times that are not negative")
    return args


def _parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "1280x720"."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected one such as 1280x720")
    return int(width), int(height)


def _check_checkpoint(bundle: Bundle, checkpoint: Path) -> None:
    """Raise where the bundle was made of another one: times of two networks tell nothing."""
    if not checkpoint.is_file():
        raise KestrelError(f"there is no checkpoint {checkpoint}. Give the bundle's own.")
    expected = bundle.manifest.training.get("checkpoint_sha256", "")
    found = hash_file(checkpoint)
    if found != expected:
        raise KestrelError(
            f"{checkpoint} has sha256 {found}; {bundle.name} was made of {expected or 'another'}. "
            "Give the checkpoint that it was exported from."
        )


def _read_frames(source: str, bundle: Bundle, size_wh: tuple[int, int] | None) -> Frames:
    """(N, H, W, 3) uint8 BGR: frames of the source, fitted into the network's input or resized."""
    geometry = bundle.manifest.geometry
    if size_wh is not None:
        geometry = dataclasses.replace(
            geometry, width=size_wh[0], height=size_wh[1], resize="stretch"
        )
    frames = np.full((NUM_FRAMES, geometry.height, geometry.width, 3), geometry.pad_value, np.uint8)
    with contextlib.closing(open_looping(source)) as reader:
        for row in range(NUM_FRAMES):
            for _ in range(FRAME_STEP):
                frame = reader.read()
                if frame is None:
                    raise KestrelError(f"source {source} gave no frame. Take a longer one.")
            image = frame.image_bgr
            Letterbox.fit(image.shape[:2], geometry).apply(image, frames[row], fill_border=True)
    return frames


def _open_peers(
    args: argparse.Namespace,
    bundle: Bundle,
    frames: Frames,
    left_out: dict[str, str],
    stack: contextlib.ExitStack,
) -> dict[str, Peer]:
    """All that can be had here; why not the others goes into `left_out`."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    np.save(folder / "frames.npy", frames)
    peers: dict[str, Peer] = {}
    for entry in ENTRIES:
        is_asked = args.peers is None or any(word in entry.name for word in args.peers)
        if entry.name != REFERENCE and not is_asked:
            continue
        reason = _why_not(entry, args, bundle)
        if not reason:
            try:
                peers[entry.name] = _open_peer(entry, args, bundle, frames, folder)
            except SessionError as error:
                reason = str(error)
        if reason:
            left_out[entry.name] = reason
            print(f"{entry.name}: left out: {reason}", file=sys.stderr)
            continue
        stack.callback(peers[entry.name].close)
        print(f"{entry.name}: ready", file=sys.stderr)
    if REFERENCE not in peers:
        raise KestrelError(f"{REFERENCE} is what the others are held against: {left_out}")
    return peers


def _why_not(entry: Entry, args: argparse.Namespace, bundle: Bundle) -> str:
    if entry.is_bf16 and not is_bf16_fast():
        return "this CPU does not compute in bf16"
    if not entry.backend and args.drawn is not None:
        return "it draws nothing"
    if not entry.backend:
        return "" if args.checkpoint else "no --checkpoint was given"
    have = bundle.manifest.precisions
    return "" if entry.precision in have else f"the bundle has {', '.join(have)} only"


def _open_peer(
    entry: Entry, args: argparse.Namespace, bundle: Bundle, frames: Frames, folder: Path
) -> Peer:
    if not entry.backend:
        threads = [] if args.threads is None else ["--threads", str(args.threads)]
        return TorchPeer(
            args.checkpoint,
            folder / "frames.npy",
            score_threshold=bundle.manifest.defaults.score_threshold,
            options=[*entry.torch, *threads],
        )
    threads_option = {} if args.threads is None else {"threads": args.threads}
    return RuntimePeer(
        args.bundle,
        frames,
        backend=entry.backend,
        precision=entry.precision,
        allow_unverified=args.allow_unverified,
        options={**entry.options, **threads_option},
        is_drawn=args.drawn is not None,
    )


def _describe(
    name: str, series: Series, reference: Series, facts: dict[str, Any], bundle: Bundle
) -> dict[str, Any]:
    """A peer's entry of the record."""
    entry = next(entry for entry in ENTRIES if entry.name == name)
    ratio = compare(series, reference)
    p50, p90 = np.percentile(series.ms, (50, 90)).tolist()
    parts = {part: round(float(np.median(ms)), 4) for part, ms in series.parts_ms.items()}
    return {
        "p50_ms": round(p50, 4),
        "p90_ms": round(p90, 4),
        "min_ms": round(float(series.ms.min()), 4),
        "parts_p50_ms": parts,
        "times_faster": round(ratio.times_faster, 4),
        "interval": [round(ratio.low, 4), round(ratio.high, 4)],
        "results_a_frame": round(series.results_a_frame, 3),
        "frames": len(series.ms),
        "verdict": bundle.verdict(entry.precision, entry.backend) if entry.backend else None,
        "facts": facts,
        "round_ms": [round(float(ms), 4) for ms in series.round_ms],
    }


def _notices(machine: dict[str, Any]) -> list[str]:
    if not machine["is_shared"]:
        return []
    return [
        f"Shared machine: a load of {machine['load_average'][0]} on {machine['cores']} cores "
        "before the measurement began. The times hold other programs' work, too."
    ]


def _report(document: dict[str, Any], out: Path | None) -> None:
    for notice in document["notices"]:
        print(notice)
    print(format_speed_table(document))
    settings = document["settings"]
    print(
        f"{settings['measured']}; {settings['rounds']} interleaved rounds; times faster than "
        f"{settings['reference']}"
    )
    if out is not None:
        write_json(out, document)
        print(f"-> {out}")


if __name__ == "__main__":
    sys.exit(run_script(main))
