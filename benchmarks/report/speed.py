"""A speed record as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report.text_table import format_table

ENGINE = ("engine",)


def format_speed_table(document: Mapping[str, Any]) -> str:
    """One line a peer; "engine" is p50 of the engine alone, where the peer knows it.

    Where results were drawn the other parts of a frame stand beside it.
    """
    rows = document["peers"]
    known = max((list(row["parts_p50_ms"]) for row in rows.values()), key=len)
    parts = known if "draw" in known else ENGINE
    header = ("ms a frame", "p50", "p90", *parts, "fps", "times faster", "95 %", "results")
    return format_table(header, [_row(name, row, parts) for name, row in rows.items()])


def _row(name: str, row: Mapping[str, Any], parts: Sequence[str]) -> list[str]:
    times = row["parts_p50_ms"]
    return [
        name,
        f"{row['p50_ms']:.2f}",
        f"{row['p90_ms']:.2f}",
        *(f"{times[part]:.2f}" if part in times else "" for part in parts),
        f"{1e3 / row['p50_ms']:.1f}",
        f"{row['times_faster']:.2f}",
        f"{row['interval'][0]:.2f}-{row['interval'][1]:.2f}",
        f"{row['results_a_frame']:.1f}",
    ]
