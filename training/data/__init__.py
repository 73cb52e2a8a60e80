"""Data sets, geometry and augmentation, without torch: ``open_data`` is the door."""

from training.data.door import open_data
from training.data.records import Defects, RecordSource, each_once
from training.data.sample import DataError, Sample, Source

__all__ = [
    "DataError",
    "Defects",
    "RecordSource",
    "Sample",
    "Source",
    "each_once",
    "open_data",
]
