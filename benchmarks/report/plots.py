"""Plots as SVG that stands in a page: no file beside it, and the page's own text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

INK = "#010203"  # becomes the page's text colour
# Okabe and Ito's colours: told apart by everyone, readable on white and on black.
COLOURS = {
    "total": "#56b4e9",
    "engine": "#d55e00",
    "capture": "#0072b2",
    "preprocess": "#009e73",
    "finish": "#cc79a7",
    "draw": "#e69f00",
    "between": "#8c8c8c",
}
SIZE_INCHES = (4.4, 2.9)
MOST_POINTS = 1500  # of a line in a plot; beyond, bins show their lowest and highest value


def plot_histogram(samples_ms: Mapping[str, NDArray[np.floating]]) -> str:
    """How often each duration came; the axis reaches to the slowest frame, counts are log."""
    figure, axes = _new_figure()
    everything = np.concatenate(list(samples_ms.values()))
    low, high = max(float(everything.min()), 1e-3), max(float(everything.max()), 2e-3)
    bins = np.geomspace(low * 0.95, high * 1.05, 60)
    for name, samples in samples_ms.items():
        axes.hist(samples, bins=bins, color=COLOURS[name], alpha=0.75, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("milliseconds a frame")
    axes.set_ylabel("frames")
    _format_plainly(axes.xaxis)
    _format_plainly(axes.yaxis)
    return _finish(figure, axes, "histogram")


def plot_distribution(samples_ms: Mapping[str, NDArray[np.floating]]) -> str:
    """The share of frames that took at most so long, one line a stage, all frames."""
    figure, axes = _new_figure()
    for name, samples in samples_ms.items():
        ordered = np.sort(samples)
        share = np.arange(1, len(ordered) + 1) / len(ordered) * 100
        keep = np.unique(np.linspace(0, len(ordered) - 1, MOST_POINTS).astype(int))
        axes.step(
            np.maximum(ordered[keep], 1e-3),
            share[keep],
            where="post",
            color=COLOURS[name],
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a frame")
    axes.set_ylabel("% of frames")
    axes.set_ylim(0, 101)
    _format_plainly(axes.xaxis)
    return _finish(figure, axes, "distribution")


def plot_series(samples_ms: Mapping[str, NDArray[np.floating]]) -> str:
    """Durations in the order of frames: drift, warm-up that was too short, single slow frames."""
    figure, axes = _new_figure()
    for name, samples in samples_ms.items():
        if len(samples) <= MOST_POINTS:
            axes.plot(samples, color=COLOURS[name], linewidth=0.8, label=name)
            continue
        edges = np.linspace(0, len(samples), MOST_POINTS // 2 + 1).astype(int)[:-1]
        lowest = np.minimum.reduceat(samples, edges)
        highest = np.maximum.reduceat(samples, edges)
        axes.fill_between(edges, lowest, highest, color=COLOURS[name], linewidth=0.5, label=name)
    axes.set_xlabel("frame")
    axes.set_ylabel("milliseconds")
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, "series")


def _new_figure() -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none"}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(INK)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(visible=True, alpha=0.15, color=INK)
    return figure, axes


def _format_plainly(axis: Any) -> None:
    """Numbers without powers on a logarithmic axis, a few between the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _finish(figure: Any, axes: Any, name: str) -> str:
    """The figure as an <svg> element without addresses; `name` keeps its ids apart."""
    import matplotlib as mpl

    legend = axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    legend.set_loc("best")
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    return text.replace(INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{name}"')
