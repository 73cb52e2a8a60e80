"""A latency measurement as a page and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import page
from benchmarks.report.plots import COLOURS, plot_distribution, plot_histogram, plot_series
from benchmarks.report.text_table import format_table

HEADER = ("stage", "p50", "p90", "p99", "max", "mean")
STRONG = ("total",)
MEANINGS = {
    "capture": "reading and decoding the frame",
    "preprocess": "resizing and padding into the network's input",
    "engine": "from handing the input over until the outputs are there",
    "finish": "outputs to results in pixels of the frame",
    "draw": "boxes, labels and caption into the frame",
    "total": "from the start of capture until the frame is drawn",
    "age": "from the start of capture until the results are there",
    "around": "total without engine: all that is not the network",
}


def format_latency_table(document: Mapping[str, Any]) -> str:
    """The stages as a table for the terminal, in milliseconds."""
    return format_table(HEADER, _rows(document))


def render_latency_page(
    document: Mapping[str, Any], samples_ms: Mapping[str, NDArray[np.floating]]
) -> str:
    """The page.

    Args:
        document: what latency.json holds.
        samples_ms: stage -> (N,) milliseconds of every measured frame.
    """
    bundle, stages = document["bundle"], document["stages"]
    title = f"Latency of {bundle['model']} ({bundle['precision']}, {bundle['backend']})"
    sections = [
        f'<p class="soft">{document["created"]} · task {bundle["task"]} · network input '
        f"{bundle['input_wh'][0]}x{bundle['input_wh'][1]} · {bundle['device']}</p>"
    ]
    sections += [page.render_notice(text) for text in document["notices"]]
    sections += [
        page.render_figures(_figures(document)),
        "<h2>Milliseconds a frame</h2>",
        page.render_table(HEADER, _rows(document), strong=STRONG),
        '<p class="soft">Over every measured frame: none is left out, the slowest is the max. '
        + " ".join(f"<b>{name}</b>: {MEANINGS[name]}." for name in stages if name in MEANINGS)
        + "</p>",
        "<h2>Where the mean frame goes</h2>",
        page.render_bar(_parts(stages), COLOURS, "ms"),
        "<h2>Spread</h2>",
        page.render_plots(_plots(samples_ms)),
    ]
    for heading, key in (
        ("Frames", "frames"),
        ("Memory and processor", "process"),
        ("Cold start", "cold_start"),
        ("How it was measured", "settings"),
        ("Bundle", "bundle"),
        ("Machine", "machine"),
        ("Libraries", "libraries"),
    ):
        pairs = dict(_in_words(name, value) for name, value in document[key].items())
        sections += [f"<h2>{heading}</h2>", page.render_pairs(pairs)]
    return page.render_page(title, sections)


def _rows(document: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, *(f"{spread[key]:.2f}" for key in ("p50", "p90", "p99", "max", "mean"))]
        for name, spread in document["stages"].items()
    ]


def _figures(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    stages, frames = document["stages"], document["frames"]
    return [
        (f"{stages['total']['p50']:.2f} ms", "median frame"),
        (f"{stages['total']['p99']:.2f} ms", "99 of 100 frames"),
        (f"{stages['total']['max']:.2f} ms", "slowest frame"),
        (f"{stages['engine']['p50']:.2f} ms", "engine, median"),
        (f"{frames['fps']:.1f}", "frames a second"),
        (str(frames["dropped"]), "dropped frames"),
    ]


def _parts(stages: Mapping[str, Any]) -> dict[str, float]:
    """The mean frame in its stages and what lies between them."""
    names = ("capture", "preprocess", "engine", "finish", "draw")
    parts = {name: stages[name]["mean"] for name in names if name in stages}
    parts["between"] = max(stages["total"]["mean"] - sum(parts.values()), 0.0)
    return parts


def _plots(samples_ms: Mapping[str, NDArray[np.floating]]) -> list[tuple[str, str]]:
    main = {name: samples_ms[name] for name in ("total", "engine")}
    names = ("engine", "total", "capture", "preprocess", "finish", "draw")
    each = {name: samples_ms[name] for name in names if name in samples_ms}
    return [
        (plot_histogram(main), "How often a frame took so long; both axes logarithmic."),
        (plot_distribution(each), "Share of frames that took at most so long."),
        (plot_series(main), "In the order of frames: drift, and single slow frames."),
    ]


def _in_words(name: str, value: Any) -> tuple[str, Any]:
    """A field of latency.json as people write it: units behind the number."""
    for suffix, unit in (("_mib", "MiB"), ("_ms", "ms")):
        if name.endswith(suffix):
            return name.removesuffix(suffix).replace("_", " "), f"{value} {unit}"
    if name.endswith("_wh"):
        return name.removesuffix("_wh").replace("_", " ") + " size", f"{value[0]}x{value[1]}"
    return name.replace("_", " ").removeprefix("is "), value
