"""A clip played again from its start until enough frames were measured."""

from __future__ import annotations

from pathlib import Path

from runtime.pipeline.sources import Source, open_source
from runtime.pipeline.sources.looping import LoopingSource

STREET = "street"


def open_looping(uri: str) -> LoopingSource:
    """A source of the runtime's, or the street where there is no file of that name, endless."""
    return LoopingSource(lambda: _open(uri))


def _open(uri: str) -> Source:
    if uri == STREET and not Path(uri).exists():
        from benchmarks.measure.street_clip import StreetSource

        return StreetSource()
    return open_source(uri)
