"""A run with its web page in a process of its own, to be asked and attacked.

The network is a bundle, or an engine that sleeps as long as one on a GPU would compute. A line of
JSON on standard output tells the address; each line on standard input is answered by one with the
figures of the run, so that to ask costs the server nothing; the end of the input ends the run.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.measure.process import read_usage
from benchmarks.measure.sleeping_engine import open_sleeping_predictor
from benchmarks.measure.synthetic_source import SyntheticSource
from runtime.pipeline.stages import Pipeline
from runtime.pipeline.stopping import StopSignal
from runtime.video_options import parse
from runtime.video_parts import Networks, open_networks
from runtime.web.opening import open_web, take_port

ROOT = Path(__file__).resolve().parents[2]
PICTURE_WH = (1280, 720)
SLEEPING = "sleeping"  # in place of a bundle
START_S = 120.0  # to load libraries and a bundle on a busy machine


def serve(bundle: str, engine_ms: float, fps: float, token: str) -> None:
    """Run until the input ends.

    Args:
        bundle: path, or SLEEPING.
        engine_ms: that an engine call sleeps.
        fps: of a camera; 0: pictures come as fast as the engine takes them.
        token: of the page.
    """
    source = SyntheticSource("camera", size_wh=PICTURE_WH, fps=fps or 30.0, is_live=fps > 0)
    words = [bundle, "--source", "camera", "--web", "0", "--web-token", token]
    args = parse([*words, "--web-bundle", str(ROOT / "none")])
    stop = StopSignal()
    with contextlib.ExitStack() as stack:
        engines = stack.enter_context(contextlib.ExitStack())
        if bundle == SLEEPING:
            predictor, _ = open_sleeping_predictor(engine_ms)
            engines.enter_context(predictor)
            networks = Networks(predictor, [predictor])
        else:
            networks = open_networks(args, 1, engines)
        page = open_web(args, take_port(args, stack), [source], networks, engines, stack)
        pipeline = Pipeline(
            source,
            page.switch.infers,
            [page.sink],
            batchers=(page.switch,),
            caption=lambda lane: (f"{lane.rate.fps:.1f} fps",),
            stop=stop,
            times=page.times,
        )
        page.start(pipeline)
        print(json.dumps({"url": page.sink.target}), flush=True)
        asked = threading.Thread(target=_answer, args=(pipeline, stop), daemon=True)
        asked.start()
        pipeline.run()


def _answer(pipeline: Pipeline, stop: StopSignal) -> None:
    for _ in sys.stdin:
        figures = {
            "num_delivered": pipeline.num_written,
            "at_s": time.perf_counter(),
            "cpu_s": time.process_time(),
            "rss_mib": read_usage().rss_mib,
            "num_threads": threading.active_count(),
            "num_descriptors": len(list(Path("/proc/self/fd").iterdir())),
        }
        print(json.dumps(figures), flush=True)
    stop.set()


class WebHost:
    """The process; a context manager.

    Args:
        bundle, engine_ms, fps, token: as of `serve`.

    Attributes:
        host, port: where the page is.
    """

    def __init__(self, bundle: str, engine_ms: float, fps: float, token: str) -> None:
        asked = (bundle, engine_ms, fps, token)
        code = f"from benchmarks.measure.web_host import serve; serve{asked!r}"
        self.host, self.port = "127.0.0.1", 0
        self.token = token
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> WebHost:
        self.port = int(self._read()["url"].rstrip("/").rpartition(":")[2])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._process
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def figures(self) -> dict[str, Any]:
        """Those of the run now."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the run that serves the page has ended")
        found: dict[str, Any] = json.loads(line)
        return found
