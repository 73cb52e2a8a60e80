"""What frames cost in the last two minutes, second by second, beside the times of the whole run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import numpy as np

from runtime.pipeline.timing import STAGES, StageTimes

SECONDS = 120
ROWS_A_SECOND = 64  # frames of a second whose times are kept for percentiles


class RecentTimes(StageTimes):
    """`StageTimes` that also remembers the last SECONDS seconds; memory is fixed.

    Means are of all frames; percentiles of the first ROWS_A_SECOND of each second. The pipeline
    adds on its thread, any may read.

    Args:
        capacity, stages: as of `StageTimes`.
    """

    def __init__(self, capacity: int, stages: Sequence[str] = STAGES) -> None:
        super().__init__(capacity, stages)
        shape = (SECONDS, len(self.stages))
        self._recent_sums = np.zeros(shape)
        self._recent_counts = np.zeros(shape, np.int64)
        self._recent_rows = np.full((SECONDS, ROWS_A_SECOND, shape[1]), np.nan, np.float32)
        self._num_rows = np.zeros(SECONDS, np.int64)
        self._second = int(monotonic())
        self._lock = threading.Lock()

    def add(self, times_ms: Mapping[str, float]) -> None:
        super().add(times_ms)
        row = np.array([times_ms.get(stage, np.nan) for stage in self.stages])
        with self._lock:
            place = self._move_to(int(monotonic())) % SECONDS
            self._recent_sums[place] += np.nan_to_num(row)
            self._recent_counts[place] += ~np.isnan(row)
            if self._num_rows[place] < ROWS_A_SECOND:
                self._recent_rows[place, self._num_rows[place]] = row
                self._num_rows[place] += 1

    def recent(self, num_seconds: int = SECONDS) -> list[dict[str, Any]]:
        """Each stage's figures over the last seconds, the one under way left out.

        Args:
            num_seconds: 1 to SECONDS - 1, of the history.

        Returns:
            For each stage {name, mean_ms, p50_ms, p99_ms, history_ms}: milliseconds, None where no
            frame came; `history_ms` has a mean for each second, the oldest first.
        """
        num_seconds = min(num_seconds, SECONDS - 1)
        with self._lock:
            now = self._move_to(int(monotonic()))
            places = np.arange(now - num_seconds, now) % SECONDS
            sums, counts = self._recent_sums[places], self._recent_counts[places]
            rows = self._recent_rows[places].reshape(-1, len(self.stages))
        found = []
        for column, stage in enumerate(self.stages):
            count = int(counts[:, column].sum())
            samples = rows[:, column]
            samples = samples[~np.isnan(samples)]
            p50, p99 = np.percentile(samples, (50, 99)) if len(samples) else (None, None)
            pairs = zip(sums[:, column].tolist(), counts[:, column].tolist(), strict=True)
            found.append(
                {
                    "name": stage,
                    "mean_ms": _rounded(sums[:, column].sum() / count if count else None),
                    "p50_ms": _rounded(p50),
                    "p99_ms": _rounded(p99),
                    "history_ms": [_rounded(total / n if n else None) for total, n in pairs],
                }
            )
        return found

    def _move_to(self, second: int) -> int:
        """Empty what is older than SECONDS; within the lock. The second that is filled now."""
        second = max(second, self._second)
        for passed in range(max(self._second + 1, second - SECONDS + 1), second + 1):
            place = passed % SECONDS
            self._recent_sums[place] = 0.0
            self._recent_counts[place] = 0
            self._recent_rows[place] = np.nan
            self._num_rows[place] = 0
        self._second = second
        return second


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)
