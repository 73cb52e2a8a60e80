r"""Answer how long PyTorch takes for frames: the peer that benchmarks/speed.py starts.

The benchmarks import no models, so this runs as a process of its own. Standard input takes one
number a line, how many frames to run; standard output gives one line of JSON for each:

    {"ready": true, "torch": "2.9.0", "threads": 2, "load_ms": 900.0}     at the start
    {"ms": [41.2, 40.9], "num_results": 37}                               to the line "2"

Each frame is timed by itself, from the uint8 picture of network size to the detections in NumPy
(`training.tasks.<task>.detect`). Between lines the process sleeps. It ends with its input.

Examples:
  python training/serve_forward.py --checkpoint weights/retinanet_small.safetensors \
      --frames frames.npy
      Then type a number of frames, and Ctrl-D at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

if not __package__:  # run by path: import from the repository root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.errors import TrainingError, run_script
from training.manual import ScriptParser

NUM_WARM_UP = 3  # the first compiles, the second again: the anchors are constants by then


def main() -> int:
    """Load, say that it is ready, and answer until the input ends."""
    args = _parse()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a compiler prints must not stand among the answers
    begun = perf_counter()

    import numpy as np
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    frames = torch.from_numpy(np.load(args.frames))
    detect = _load(args, tuple(frames.shape[1:3]))
    for _ in range(NUM_WARM_UP):
        detect(frames[:1])
    ready = {
        "ready": True,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_ms": round((perf_counter() - begun) * 1e3, 1),
    }
    _answer(answers, ready)
    place = 0
    for line in sys.stdin:
        times_ms, num_results = [], 0
        for _ in range(_read_count(line)):
            frame = frames[place : place + 1]
            place = (place + 1) % len(frames)
            started = perf_counter()
            found = detect(frame)
            times_ms.append(round((perf_counter() - started) * 1e3, 4))
            num_results += len(found[0].scores)
        _answer(answers, {"ms": times_ms, "num_results": num_results})
    return 0


def _parse() -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what is run")
    parser.add_argument(
        "--frames", type=Path, required=True, help=".npy, (N, H, W, 3) uint8 BGR of network size"
    )
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast"
    )
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--score-threshold", type=float, help="default: the checkpoint's")
    return parser.parse_args()


def _load(args: argparse.Namespace, size_hw: tuple[int, ...]) -> Any:
    """The task's `detect` of a model that is as fast as PyTorch makes it."""
    import torch

    from training.loop.checkpoint import load_release
    from training.tasks import task_module

    model, _ = load_release(args.checkpoint)
    if model.spec.size_hw != size_hw:
        raise TrainingError(
            f"{args.frames} has pictures of {size_hw[1]}x{size_hw[0]}; the checkpoint expects "
            f"{model.spec.size_hw[1]}x{model.spec.size_hw[0]}. Give pictures of that size."
        )
    model = model.to(memory_format=torch.channels_last)  # the faster layout on CPUs
    if args.compile:
        import torch._inductor.config

        torch._inductor.config.freezing = True  # folds and packs the weights, as the engines do
        model.compile()
    threshold = model.spec.score_threshold
    threshold = threshold if args.score_threshold is None else args.score_threshold
    task = task_module(model.task)

    def detect(frame: Any) -> Any:
        is_bf16 = args.precision == "bf16"
        cast = torch.autocast("cpu", torch.bfloat16) if is_bf16 else contextlib.nullcontext()
        with torch.inference_mode(), cast:
            return task.detect(model, frame, score_threshold=threshold)

    return detect


def _read_count(line: str) -> int:
    if not line.strip().isdigit():
        raise TrainingError(f"the line {line.strip()!r} came; expected a number of frames.")
    return int(line)


def _answer(answers: TextIO, document: dict[str, Any]) -> None:
    print(json.dumps(document), file=answers, flush=True)


if __name__ == "__main__":
    sys.exit(run_script(main))
