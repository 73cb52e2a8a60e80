"""A picture of a search: groups by sensitivity, and AP over the number of them in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FLOAT, INT8, INK = "#d55e00", "#0072b2", "#555555"  # Okabe and Ito's
MOST_NAMED = 60


def draw_search(document: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG.

    Args:
        document: the entry "search" of verify.json.
        path: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = document["groups"]
    height = 3.6 + 0.17 * min(MOST_NAMED, len(groups))
    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_groups(left, groups)
    _draw_trials(right, document)
    figure.suptitle(document["conclusion"], fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_groups(axes: Any, groups: list[dict[str, Any]]) -> None:
    """Bars of error, most sensitive for its multiply-adds first."""
    shown = [row for row in groups if row["error"] is not None][:MOST_NAMED]
    axes.set_title("error of the heads' outputs with one group in int8", fontsize=9)
    if not shown:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    labels = [f"{row['name']}  ({row['macs_share']:.1%})" for row in shown]
    errors = [max(row["error"], 1e-12) for row in shown]
    colours = [FLOAT if row["precision"] == "float" else INT8 for row in shown]
    axes.barh(range(len(shown)), errors, color=colours)
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel("power of the error / variance of the output", fontsize=8)
    axes.set_ylabel(
        "group (share of the multiply-adds), by error for each multiply-add", fontsize=8
    )
    for name, colour in (("stays float", FLOAT), ("int8", INT8)):
        axes.barh([0], [0], color=colour, label=name)
    axes.legend(fontsize=8, loc="lower right")


def _draw_trials(axes: Any, document: dict[str, Any]) -> None:
    """Drop of AP over how many groups are float, with the budget."""
    trials = document["trials"]
    axes.set_title(
        f"{document['searched_on']['images']} frames of {document['searched_on']['data']} "
        f"{document['searched_on']['split']}",
        fontsize=9,
    )
    counts = [row["num_float"] for row in trials]
    axes.plot(counts, [row["drop"] for row in trials], "o-", color=INK, label="measured")
    budget = document["budget"]
    axes.axhline(budget, color=FLOAT, linestyle="--", label=f"budget {budget}")
    num_float = sum(row["precision"] == "float" for row in document["groups"])
    chosen = [row["drop"] for row in trials if row["num_float"] == num_float]
    if chosen:
        axes.plot([num_float], chosen, "o", color=INT8, markersize=10, label="chosen")
    axes.set_xlabel("groups in float, most sensitive first", fontsize=8)
    axes.set_ylabel("drop of AP below float", fontsize=8)
    axes.legend(fontsize=8)
