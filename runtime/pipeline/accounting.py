"""What became of every frame: captured = delivered + dropped, by source and by reason, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.pipeline.sources.base import SourceState
from runtime.pipeline.timing import Spread

REPLACED = "replaced"  # by a newer frame of a live source, while it waited for the engine
TOO_OLD = "too_old"  # older than was allowed when its turn came, or from before the run
CORRUPT = "corrupt"  # could not be decoded
AT_END = "at_end"  # read ahead, and no longer wanted when the run ended
REASONS = (REPLACED, TOO_OLD, CORRUPT, AT_END)


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """What became of one source's frames.

    Attributes:
        name: of the source.
        num_captured: frames that it gave, and those that it could not decode.
        num_delivered: frames whose results every sink was given.
        dropped: every reason of REASONS -> frames.
        ages: milliseconds from capture until results were there; None without a frame.
        num_reconnects: times that it was lost and came back, or came when others ran.
        num_promised: frames that the file's header promised, or None.
        state: at the end. error: why it failed, or "".
    """

    name: str
    num_captured: int
    num_delivered: int
    dropped: Mapping[str, int]
    ages: Spread | None
    num_reconnects: int
    num_promised: int | None
    state: SourceState
    error: str = ""

    @property
    def num_dropped(self) -> int:
        """Frames that were decoded and dropped."""
        return sum(self.dropped.values()) - self.dropped[CORRUPT]

    def to_json(self) -> dict[str, Any]:
        """For logs and records."""
        return {
            "source": self.name,
            "captured": self.num_captured,
            "delivered": self.num_delivered,
            "dropped": dict(self.dropped),
            "age_ms": ages_to_json(self.ages),
            "reconnects": self.num_reconnects,
            "state": self.state.value,
            **({"error": self.error} if self.error else {}),
        }


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run did, over all its sources.

    Attributes:
        num_frames: inferred and written.
        num_decoded: delivered by the sources. num_dropped: of these, never inferred.
        num_corrupt: could not be decoded.
        num_promised: by the header of the one source there is, or None.
        seconds: wall time. was_stopped: ended by a signal.
        sources: the same of each.
        ages: milliseconds from capture until results were there; None without a frame.
    """

    num_frames: int
    num_decoded: int
    num_dropped: int
    num_corrupt: int
    num_promised: int | None
    seconds: float
    was_stopped: bool
    sources: tuple[SourceSummary, ...] = field(default=())
    ages: Spread | None = None

    @classmethod
    def of(
        cls,
        sources: tuple[SourceSummary, ...],
        *,
        seconds: float,
        was_stopped: bool,
        ages: Spread | None,
    ) -> RunSummary:
        """Add up what became of each source's frames."""
        num_corrupt = sum(each.dropped[CORRUPT] for each in sources)
        return cls(
            num_frames=sum(each.num_delivered for each in sources),
            num_decoded=sum(each.num_captured for each in sources) - num_corrupt,
            num_dropped=sum(each.num_dropped for each in sources),
            num_corrupt=num_corrupt,
            num_promised=sources[0].num_promised if len(sources) == 1 else None,
            seconds=seconds,
            was_stopped=was_stopped,
            sources=sources,
            ages=ages,
        )

    @property
    def fps(self) -> float:
        """Frames a second, of all sources together."""
        return self.num_frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def dropped(self) -> dict[str, int]:
        """Every reason of REASONS -> frames of all sources."""
        return {reason: sum(each.dropped[reason] for each in self.sources) for reason in REASONS}

    def to_json(self) -> dict[str, Any]:
        """For logs and records; without the sources."""
        return {
            "captured": self.num_decoded + self.num_corrupt,
            "delivered": self.num_frames,
            "dropped": self.dropped,
            "age_ms": ages_to_json(self.ages),
            "reconnects": sum(each.num_reconnects for each in self.sources),
            "seconds": round(self.seconds, 3),
            "fps": round(self.fps, 3),
            "was_stopped": self.was_stopped,
        }


def ages_to_json(ages: Spread | None) -> dict[str, float] | None:
    """Percentiles and maximum in milliseconds, None where no frame had an age."""
    if ages is None:
        return None
    return {name: round(getattr(ages, name), 3) for name in ("p50", "p99", "max")}
