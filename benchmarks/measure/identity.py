"""How well ids follow objects: IDF1, and CLEAR MOT's switches, over clips with true tracks.

IDF1 (Ristani et al., arXiv:1609.01775): one track is given to each true one, over the whole clip,
so that most boxes agree; the F1 of these boxes. Switches and MOTA (Bernardin and Stiefelhagen,
2008): frame by frame, an object keeps the box whose id it had while that still covers it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.contract.matching import pairwise_iou
from runtime.tracking.byte_track import assign

MATCH_IOU = 0.5  # of a box and an object, of the same class; more, or as much


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Boxes of one frame with their identities.

    Attributes:
        ids: (N,) int. classes: (N,) int. boxes_xyxy: (N, 4) pixels.
    """

    ids: NDArray[np.int64]
    classes: NDArray[np.int32]
    boxes_xyxy: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: NDArray[np.bool_]) -> Boxes:
        return Boxes(self.ids[index], self.classes[index], self.boxes_xyxy[index])


@dataclass(frozen=True, slots=True)
class IdentityScores:
    """Of clips, added up.

    Attributes:
        num_true: boxes of objects. num_found: boxes with an id. num_covered: objects found, frame
            by frame. num_same: of these with the id of their whole track (IDTP).
        num_switches: times that an object's id was another than before.
        num_tracks: true ones. num_ids: that were given.
    """

    num_true: int = 0
    num_found: int = 0
    num_covered: int = 0
    num_same: int = 0
    num_switches: int = 0
    num_tracks: int = 0
    num_ids: int = 0

    def __add__(self, other: IdentityScores) -> IdentityScores:
        return IdentityScores(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))

    @property
    def idf1(self) -> float:
        """0..1; 1 where there was nothing and nothing was found."""
        total = self.num_true + self.num_found
        return 2 * self.num_same / total if total else 1.0

    @property
    def mota(self) -> float:
        """1 - (missed + false + switches) / true boxes; below 0 where there are many false ones."""
        errors = self.num_true + self.num_found - 2 * self.num_covered + self.num_switches
        return 1 - errors / max(1, self.num_true)


def score_clip(
    truth: list[Boxes], found: list[Boxes], ignored: list[NDArray[np.float64]] | None = None
) -> IdentityScores:
    """Score the tracks of one clip.

    Args:
        truth, found: of each frame, in order.
        ignored: of each frame (N, 4) boxes; what lies on them, and on no object, does not count.
    """
    last: dict[int, int] = {}  # true id -> the id it had last
    shared: Counter[tuple[int, int]] = Counter()  # (true id, id) -> frames that both cover
    num_true = num_found = num_covered = num_switches = 0
    ids: set[int] = set()
    for number, (true, mine) in enumerate(zip(truth, found, strict=True)):
        overlap = _overlap(true, mine)
        pairs = _match(true, mine, overlap, last)
        if ignored is not None and len(mine):
            on_ignored = _cover(mine.boxes_xyxy, ignored[number]) >= MATCH_IOU
            on_ignored[[b for _, b in pairs]] = False
            mine, overlap = mine[~on_ignored], overlap[:, ~on_ignored]
            pairs = _match(true, mine, overlap, last)
        for a, b in pairs:
            key, now = int(true.ids[a]), int(mine.ids[b])
            num_switches += last.get(key, now) != now
            last[key] = now
        for a, b in zip(*np.nonzero(overlap >= MATCH_IOU), strict=True):
            shared[int(true.ids[a]), int(mine.ids[b])] += 1
        num_true, num_found = num_true + len(true), num_found + len(mine)
        num_covered += len(pairs)
        ids.update(mine.ids.tolist())
    tracks = {int(each) for true in truth for each in true.ids}
    return IdentityScores(
        num_true, num_found, num_covered, _best_sum(shared), num_switches, len(tracks), len(ids)
    )


def true_ids(truth: Boxes, found: Boxes) -> Boxes:
    """Boxes with the ids of the objects that they are of; each of the others has its own, below 0.

    What a tracker without a fault would give of the boxes of one frame.
    """
    ids = -1 - np.arange(len(found), dtype=np.int64)
    for row, column in _match(truth, found, _overlap(truth, found), {}):
        ids[column] = truth.ids[row]
    return Boxes(ids, found.classes, found.boxes_xyxy)


def _overlap(true: Boxes, mine: Boxes) -> NDArray[np.float64]:
    overlap = pairwise_iou(true.boxes_xyxy, mine.boxes_xyxy)
    overlap[true.classes[:, None] != mine.classes[None]] = 0.0
    return overlap


def _match(
    true: Boxes, mine: Boxes, overlap: NDArray[np.float64], last: dict[int, int]
) -> list[tuple[int, int]]:
    """Pairs (object, box): those that went together before, then the best of the rest."""
    place = {int(each): column for column, each in enumerate(mine.ids)}
    pairs: list[tuple[int, int]] = []
    for row, key in enumerate(true.ids.tolist()):
        column = place.get(last.get(key, -1))
        is_free = column is not None and all(column != other for _, other in pairs)
        if is_free and overlap[row, column] >= MATCH_IOU:
            pairs.append((row, column))
    rest = np.where(overlap >= MATCH_IOU, 1 + overlap, 0.0)  # first as many as can be
    for row, column in pairs:
        rest[row], rest[:, column] = 0.0, 0.0
    return pairs + list(zip(*(part.tolist() for part in assign(rest, 0.0)), strict=True))


def _best_sum(shared: Counter[tuple[int, int]]) -> int:
    """The most frames that agree when each id is given to one true track at most."""
    rows = {key: place for place, key in enumerate(sorted({a for a, _ in shared}))}
    columns = {key: place for place, key in enumerate(sorted({b for _, b in shared}))}
    table = np.zeros((len(rows), len(columns)))
    for (a, b), count in shared.items():
        table[rows[a], columns[b]] = count
    return int(table[assign(table, 0.0)].sum())


def _cover(boxes_xyxy: NDArray[np.float64], regions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest share of each box that lies on one region, (N,)."""
    if not len(regions):
        return np.zeros(len(boxes_xyxy))
    a, b = boxes_xyxy[:, None], regions[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inner: NDArray[np.float64] = np.clip(high - low, 0, None).prod(-1)
    areas = np.maximum((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(-1), 1e-9)
    share: NDArray[np.float64] = (inner / areas[:, None]).max(axis=1)
    return share
