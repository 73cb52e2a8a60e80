"""Take the README's pictures of the web page again: a run, and Chromium that looks at it.

python tests/take_screenshots.py out/demo/retinanet --source assets/street.mp4

The chart shows two minutes, so a picture takes a little longer than that.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from chromium import Browser

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {
    "web_desktop.png": {"size_wh": (1280, 800)},
    "web_phone.png": {"size_wh": (390, 844), "is_phone": True},
}
MOST_BYTES = 300_000
NUM_COLOURS = 256
START_S = 600  # of a run, an engine to be built included
IS_READY = """
document.querySelector("#picture-note").hidden && document.querySelectorAll("#model dd").length > 0
  && document.querySelector(".chart path") !== null
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--source", default="assets/street.mp4", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "assets", help="default: assets")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument(
        "--seconds", type=float, default=125.0, help="of the run before it is looked at"
    )
    args, options = parser.parse_known_args()
    with serving([args.bundle, "--source", args.source, *options]) as url:
        time.sleep(args.seconds)
        browser = Browser()
        try:
            for name, size in PICTURES.items():
                with browser.page(url, scheme=args.scheme, **size) as page:
                    page.wait_for(IS_READY)
                    time.sleep(2)  # figures and picture of the same moment
                    write(args.out / name, page.screenshot())
        finally:
            browser.close()


@contextlib.contextmanager
def serving(words: list[str]) -> Iterator[str]:
    """A run of run_video.py; the address of its page."""
    endless = ["--loops", "1000000", "--pace", "--web", "0"]
    command = [sys.executable, str(ROOT / "runtime" / "run_video.py"), *words, *endless]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        begun = time.monotonic()
        for line in run.stderr:
            print(line, end="", file=sys.stderr)
            if line.startswith("web page: "):
                yield line.split()[-1]
                return
            if time.monotonic() - begun > START_S:
                break
        raise SystemExit("error: the run served no page; see its words above.")
    finally:
        run.kill()
        run.stderr.close()
        run.wait()


def write(path: Path, png: bytes) -> None:
    """A PNG of few colours: a third of the size, and no difference to be seen."""
    import io

    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    few = picture.quantize(NUM_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path} {picture.size[0]}x{picture.size[1]}, {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        raise SystemExit(f"error: {path} has {size} bytes; expected at most {MOST_BYTES}.")


if __name__ == "__main__":
    main()
