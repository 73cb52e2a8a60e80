"""Run the main job on the embedded clip: detect on video, measure latency, say where things lie.

`make demo` exports the shipped detector to a bundle first and then runs this.

Examples:
  python demo.py
      On the bundle of `make demo`.
  python demo.py --bundle runs/retinanet --out out/mine
      On another bundle.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from runtime.contract.manual import ScriptParser

ROOT = Path(__file__).resolve().parent
CLIP = ROOT / "assets" / "street.mp4"


def run(*command: str | Path) -> None:
    """Run one of the project's scripts; its failure ends the demo with its exit status."""
    words = [str(word) for word in command]
    print("$ python " + " ".join(words), flush=True)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def summarise(bundle: Path, out: Path) -> str:
    """One screen: what ran, how well, how fast, and where to look."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    proof = json.loads((bundle / "verify.json").read_text(encoding="utf-8"))
    report = json.loads((out / "latency" / "latency.json").read_text(encoding="utf-8"))
    engines = sorted((bundle / "engines").glob("*.engine"))
    frames = sum(1 for _ in (out / "detections.jsonl").open(encoding="utf-8"))
    lines = [
        "",
        f"Kestrel demo: {manifest['model']} ({manifest['variant']}) on {frames} frames",
        "",
    ]
    lines.append("proof (against PyTorch, detection by detection)")
    for row in proof["artifacts"]:
        if row["verdict"] == "not run":
            lines.append(f"  {row['precision']} {row['backend']:12} not run")
            continue
        ap = f", AP {row['AP']:.3f}" if row.get("AP") is not None else ""
        lines.append(
            f"  {row['precision']} {row['backend']:12} {row['verdict']}: {row['matched']} matched, "
            f"{row['unmatched']} not, box error {row['max_box_error_px']:.2g} px{ap}"
        )
    lines.append("")
    lines.append(f"latency on {report['bundle']['backend']}, milliseconds a frame")
    lines.append(f"  {'stage':12} {'p50':>8} {'p90':>8} {'p99':>8} {'max':>8}")
    for stage in ("capture", "preprocess", "engine", "finish", "draw", "total"):
        row = report["stages"].get(stage)
        if row:
            figures = " ".join(f"{row[key]:8.2f}" for key in ("p50", "p90", "p99", "max"))
            lines.append(f"  {stage:12} {figures}")
    lines += [
        "",
        f"annotated video   {out / 'annotated.mp4'}",
        f"detections        {out / 'detections.jsonl'}",
        f"latency report    {out / 'latency' / 'latency.html'}",
        f"bundle and proof  {bundle}",
        *(f"engine            {path}" for path in engines),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the demo."""
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--bundle",
        type=Path,
        default=Path("out/demo/retinanet"),
        help="a bundle with its proof",
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the results")
    args = parser.parse_args()
    video, results = args.out / "annotated.mp4", args.out / "detections.jsonl"
    source = ("--source", CLIP)
    run("runtime/run_video.py", args.bundle, *source, "--out", video, "--json", results)
    run("benchmarks/latency.py", args.bundle, *source, "--out", args.out / "latency")
    print(summarise(args.bundle, args.out))


if __name__ == "__main__":
    main()
