"""samples.npz: feeds of a graph and what PyTorch answered, which every engine is held against.

Keys of the archive are `<graph>/feeds/<input>` and `<graph>/results/<output>`; the leading side
of every array counts the samples. Of a temporal model the samples of "nonkey" are as many times
those of "key": the first few lean on the first key frame, the next ones on the second, and so on.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import BundleError
from runtime.contract.files import replacing

SAMPLES_NAME = "samples.npz"


@dataclass(frozen=True, slots=True)
class Samples:
    """Feeds and torch's results of one graph.

    Attributes:
        feeds: input name -> (N, ...), as the graph takes them.
        results: output name -> (N, ...), as PyTorch gave them in float32.
    """

    feeds: dict[str, NDArray[np.generic]]
    results: dict[str, NDArray[np.generic]]

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values()))) if self.feeds else 0


def write_samples(path: Path, samples: Mapping[str, Samples]) -> None:
    """Write {graph name: its samples} as one compressed archive, whole or not at all."""
    arrays: dict[str, Any] = {}
    for graph, sample in samples.items():
        arrays.update({f"{graph}/feeds/{name}": array for name, array in sample.feeds.items()})
        arrays.update({f"{graph}/results/{name}": array for name, array in sample.results.items()})
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_samples(path: Path, graph: str = "model") -> Samples | None:
    """The samples of one graph; None where the file is absent or has none for the graph.

    Raises:
        BundleError: the file is damaged.
    """
    if not path.is_file():
        return None
    found: dict[str, dict[str, NDArray[np.generic]]] = {"feeds": {}, "results": {}}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                owner, kind, name = key.split("/", 2)
                if owner == graph:
                    found[kind][name] = archive[key]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise BundleError(
            f"{path} is damaged; expected an archive of samples. Export the bundle again."
        ) from None
    return Samples(**found) if found["feeds"] else None
