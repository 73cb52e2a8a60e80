"""A speed record as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.text_table import format_table

HEADER = ("ms a frame", "p50", "p90", "engine", "fps", "times faster", "95 %", "results")


def format_speed_table(document: Mapping[str, Any]) -> str:
    """One line a peer; "engine" is p50 of the engine alone, where the peer knows it."""
    return format_table(HEADER, [_row(name, row) for name, row in document["peers"].items()])


def _row(name: str, row: Mapping[str, Any]) -> list[str]:
    engine = row["engine_p50_ms"]
    return [
        name,
        f"{row['p50_ms']:.2f}",
        f"{row['p90_ms']:.2f}",
        "" if engine is None else f"{engine:.2f}",
        f"{1e3 / row['p50_ms']:.1f}",
        f"{row['times_faster']:.2f}",
        f"{row['interval'][0]:.2f}-{row['interval'][1]:.2f}",
        f"{row['results_a_frame']:.1f}",
    ]
