from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pipeline_fakes import BOOK, NO_CLIPS, NumberedSource, NumberPredictor, results_of
from tiny_bundle import InputGeometry, write_tiny_bundle

from benchmarks.measure.closed_loop import run_closed_loop
from benchmarks.measure.fingerprint import describe_libraries, describe_machine
from benchmarks.measure.looping import open_looping
from benchmarks.measure.process import read_usage
from benchmarks.measure.street_clip import StreetSource
from benchmarks.report import page
from benchmarks.report.plots import plot_distribution, plot_histogram, plot_series
from benchmarks.report.text_table import format_table
from runtime.pipeline.sinks.video_file import VideoFileSink

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "latency.py"
NUM_FRAMES, NUM_WARM_UP = 45, 5
ROUNDING = 1e-3  # milliseconds are written with four digits after the point


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    sink = VideoFileSink(path, size_wh=(64, 48), fps=25.0)
    for result in results_of(20):
        sink.write(result)
    sink.close()
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return write_tiny_bundle(folder, geometry=InputGeometry(96, 128), num_samples=0)


def run_script(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def report(bundle, film, tmp_path_factory):
    """(what the terminal got, latency.json, latency.html)"""
    out = tmp_path_factory.mktemp("report") / "new"
    done = run_script(
        bundle, "--source", film, "--out", out, "--backend", "onnxruntime",
        "--frames", NUM_FRAMES, "--warm-up", NUM_WARM_UP, "--threads", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads((out / "latency.json").read_text())
    return done.stdout, document, (out / "latency.html").read_text()


def test_report_has_every_field(report):
    _, document, _ = report
    assert set(document) == {
        "schema", "kind", "created", "notices", "stages", "frames", "process", "cold_start",
        "settings", "bundle", "machine", "libraries", "samples_ms",
    }  # fmt: skip
    assert set(document["stages"]) == {
        "capture", "preprocess", "engine", "finish", "draw", "total", "age", "around",
    }  # fmt: skip
    for spread in document["stages"].values():
        assert set(spread) == {"count", "mean", "p50", "p90", "p99", "max"}
    assert {"cpu", "cpu_flags", "cores", "memory_mib", "governor", "load_average"} <= set(
        document["machine"]
    )
    assert {"python", "numpy", "onnxruntime", "opencv_build", "commit"} <= set(
        document["libraries"]
    )
    assert {"sha256", "scores", "precision", "backend", "verdict"} <= set(document["bundle"])
    assert {"rss_loaded_mib", "rss_end_mib", "rss_peak_mib", "cpu_a_frame_ms"} <= set(
        document["process"]
    )
    assert set(document["cold_start"]) == {"load_ms", "first_result_ms"}


def test_every_measured_frame_counts_and_no_warm_up(report):
    _, document, _ = report
    assert document["frames"]["measured"] == NUM_FRAMES
    assert document["frames"]["decoded"] == NUM_FRAMES + NUM_WARM_UP
    assert document["frames"]["dropped"] == 0
    assert all(spread["count"] == NUM_FRAMES for spread in document["stages"].values())
    assert document["settings"]["warm_up_frames"] == NUM_WARM_UP


def test_percentiles_of_the_report_are_numpys_over_all_samples(report):
    _, document, _ = report
    for name, samples in document["samples_ms"].items():
        spread = document["stages"][name]
        expected = np.percentile(samples, (50, 90, 99))
        found = [spread[key] for key in ("p50", "p90", "p99")]
        assert np.allclose(found, expected, atol=ROUNDING)
        assert spread["max"] == pytest.approx(max(samples), abs=ROUNDING)
        assert len(samples) == NUM_FRAMES


def test_stages_add_up_to_less_than_the_total(report):
    _, document, _ = report
    samples = {name: np.array(each) for name, each in document["samples_ms"].items()}
    parts = sum(samples[name] for name in ("capture", "preprocess", "engine", "finish", "draw"))
    assert (parts <= samples["total"] + ROUNDING).all()
    assert (samples["age"] <= samples["total"]).all()


def test_page_needs_nothing_from_elsewhere(report):
    _, _, text = report
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"""\b(src|href)\s*=\s*["'](?!#)|url\((?!#)|@import|<script|<link""", text)


def test_page_is_well_formed_and_its_ids_are_unique(report):
    _, _, text = report

    class Reader(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.ids = [], []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "link", "br", "img"):
                self.open.append(tag)
            self.ids += [value for name, value in attrs if name == "id"]

        def handle_startendtag(self, tag, attrs):
            self.ids += [value for name, value in attrs if name == "id"]

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert text.count("<svg") == 3
    for reference in re.findall(r"(?:url\(|href=\")#([\w-]+)", text):
        assert reference in reader.ids


def test_page_is_for_phones_and_for_light_and_dark(report):
    _, _, text = report
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text


def test_page_and_terminal_show_the_numbers_of_the_json(report):
    stdout, document, text = report
    for name, spread in document["stages"].items():
        row = next(line for line in stdout.splitlines() if line.startswith(name))
        for key in ("p50", "p90", "p99", "max"):
            assert f"{spread[key]:.2f}" in row.split()
            assert f"<td>{spread[key]:.2f}</td>" in text
    assert f"over {NUM_FRAMES} frames after {NUM_WARM_UP} of warm-up" in stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "none.mp4"), "does not exist"),
        (("--source", "FILM", "--out", "/proc/none"), "/proc/none"),
        (("--source", "FILM", "--precision", "fp8"), "no precision"),
    ],
    ids=["source", "out", "precision"],
)
def test_bad_input_ends_with_one_line_and_status_2(bundle, film, tmp_path, arguments, message):
    given = [str(film) if argument == "FILM" else argument for argument in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
    done = run_script(bundle, *given, *out)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- parts


def test_closed_loop_leaves_out_the_warm_up_and_nothing_else():
    measurement = run_closed_loop(
        NumberedSource(100), NumberPredictor(), num_frames=30, num_warm_up=10
    )
    assert measurement.times.num_frames == measurement.num_objects == 30
    assert measurement.summary.num_frames == 40
    assert measurement.after.wall_s > measurement.before.wall_s


def test_closed_loop_without_warm_up_measures_every_frame():
    measurement = run_closed_loop(
        NumberedSource(5), NumberPredictor(), num_frames=30, num_warm_up=0
    )
    assert measurement.times.num_frames == 5


def test_looping_source_plays_again_with_rising_times(film):
    with open_looping(str(film)) as source:
        frames = [source.read() for _ in range(50)]
    assert source.round_number == 3
    assert [frame.index for frame in frames] == list(range(50))
    assert (np.diff([frame.time_s for frame in frames]) > 0).all()


@pytest.mark.skipif(not BOOK.exists(), reason=NO_CLIPS)
def test_looping_source_plays_a_real_clip_whole():
    with open_looping(str(BOOK)) as source:
        for _ in range(110):
            source.read()
    assert source.round_number == 2  # 109 frames, and the first again


def test_street_is_a_source_of_its_own_and_its_frames_may_be_drawn_on():
    source = StreetSource(2)
    first = source.read().image_bgr
    first[:] = 0
    again = StreetSource(2).read().image_bgr
    assert source.size_wh == (768, 432)
    assert again.any()


def test_machine_and_libraries_are_described():
    machine, libraries = describe_machine(), describe_libraries()
    assert machine["cores"] >= 1
    assert machine["cpu"]
    assert libraries["numpy"] == np.__version__
    assert json.loads(json.dumps([machine, libraries]))


def test_usage_sees_memory_that_is_taken():
    before = read_usage()
    block = np.ones(64 << 20, np.uint8)
    after = read_usage()
    assert after.rss_mib - before.rss_mib > 50
    assert after.peak_mib >= after.rss_mib
    assert block.any()


@pytest.mark.parametrize("plot", [plot_histogram, plot_distribution, plot_series])
@pytest.mark.parametrize("count", [1, 3, 10_000])
def test_plots_of_any_length_stand_alone(plot, count):
    samples = np.random.default_rng(0).lognormal(1, 0.5, count)
    svg = plot({"total": samples, "engine": samples / 2})
    assert svg.startswith("<svg")
    assert "http" not in svg
    assert len(svg) < 400_000


def test_series_shows_a_single_slow_frame_among_many():
    quiet = np.ones(10_000)
    loud = quiet.copy()
    loud[5003] = 900.0
    assert plot_series({"total": loud, "engine": quiet}) != plot_series(
        {"total": quiet, "engine": quiet}
    )
    assert "800" in plot_series({"total": loud, "engine": quiet})  # the axis reaches that far


def test_page_escapes_what_it_is_given():
    text = page.render_page("<b>", [page.render_pairs({"a<": "<script>"}), page.render_notice("&")])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_table_lines_up():
    lines = format_table(("stage", "ms"), [("a", "1.00"), ("long name", "10.00")]).splitlines()
    assert lines[2] == "a           1.00"
    assert lines[3] == "long name  10.00"
