"""Clips: neighbouring frames of one scene, and where what they show has moved."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from training.data.coco import load_coco
from training.data.records import RecordSource
from training.data.sample import DataError, Sample

KINDS = ("plain", "fast", "mixed")  # of the street's clips


class Flow(NamedTuple):
    """Where the points of a frame lay in an earlier one.

    Attributes:
        offsets_xy: (H, W, 2) float32 pixels: the point seen at p in the later frame lay at
            p + offset in the earlier one.
        is_seen: (H, W) bool, the point is inside the earlier frame and nothing hides it there.
    """

    offsets_xy: np.ndarray
    is_seen: np.ndarray


@runtime_checkable
class Clip(Protocol):
    """Consecutive frames; each is made or read when it is asked for."""

    def __len__(self) -> int: ...

    def frame(self, index: int) -> Sample:
        """A frame with its labels; its image id is unique within the source."""
        ...

    def track_ids(self, index: int) -> np.ndarray | None:
        """(N,) int64, the same object's in all frames, in the order of the frame's boxes."""
        ...

    def flow(self, later: int, earlier: int) -> Flow | None:
        """From a frame to an earlier one; None where the data set has none."""
        ...


class ClipSource(Protocol):
    """A split of a data set of clips; ``classes`` and ``category_ids`` as of `Source`."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    has_flow: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clip: ...


def open_clips(
    data: str | Path, split: str, *, kind: str = "plain", num_frames: int = 12
) -> ClipSource:
    """Open one split of a data set of clips, with masks.

    Args:
        data: "street", or a COCO folder or .json whose images have ``video_id`` and
            ``frame_index`` (YouTube-VIS and OVIS frame by frame, in COCO's form).
        split: as of `open_data`.
        kind: of the street's clips, one of KINDS.
        num_frames: of each of the street's clips.
    """
    if data == "street":
        from training.data.street.clips import StreetClips

        return StreetClips(split, kind=kind, num_frames=num_frames)
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such folder. Name a COCO folder of video, or street.")
    return FileClips(load_coco(path, split))


class FileClips:
    """The clips of a COCO data set of video frames; without flow.

    Args:
        source: whose images say which clip they belong to; others are left out.
    """

    has_flow = False

    def __init__(self, source: RecordSource) -> None:
        self.source = source
        self.name = source.name
        self.classes, self.category_ids = source.classes, source.category_ids
        if not source.has_masks:
            raise DataError(f"{source.name} has boxes but no masks. Give a data set with masks.")
        places: dict[int, list[tuple[int, int]]] = {}
        for place, record in enumerate(source.records):
            if record.video is not None:
                places.setdefault(record.video[0], []).append((record.video[1], place))
        self.clips = [[place for _, place in sorted(frames)] for frames in places.values()]
        if not self.clips:
            raise DataError(
                f"{source.name} has no video: none of its {len(source)} images has a `video_id` "
                "and a `frame_index`. Add them to the images of the COCO file, or use street."
            )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> FileClip:
        return FileClip(self.source, self.clips[index])


class FileClip:
    """Frames of a data set, in order; see `Clip`."""

    def __init__(self, source: RecordSource, places: list[int]) -> None:
        self.source, self.places = source, places

    def __len__(self) -> int:
        return len(self.places)

    def frame(self, index: int) -> Sample:
        return self.source[self.places[index]]

    def track_ids(self, index: int) -> np.ndarray | None:
        return self.source.records[self.places[index]].track_ids

    def flow(self, later: int, earlier: int) -> None:
        return None
