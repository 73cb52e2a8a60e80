"""What comes out of the runtime: boxes and masks of the source frame, without any framework."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.masks import Masks
from runtime.tracking.counts import Counts


class Detection(NamedTuple):
    """One object.

    Attributes:
        box_xyxy: (4,) float32, pixels of the source frame.
        score: 0..1.
        class_index: index into the bundle's classes.
        name: of the class.
    """

    box_xyxy: NDArray[np.float32]
    score: float
    class_index: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The objects of one frame, by falling score.

    Attributes:
        boxes_xyxy: (N, 4) float32, pixels of the source frame, inside it.
        scores: (N,) float32, 0..1.
        classes: (N,) int32, indices into `names`.
        names: of all classes of the bundle.
        masks: of the objects, in their order; None of a task without masks.
        mask_scores: (N,) float32, 0..1, how good each mask is, of models that tell it: the score
            times the overlap that is expected of the mask.
        is_key: of a temporal model, whether the frame was computed in full; None of any other.
        track_ids: (N,) int64, which object over the frames, -1 where none; None where nothing
            tracks.
        counts: what crossed lines and is in zones, so far; None where nothing counts.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]
    names: tuple[str, ...]
    masks: Masks | None = None
    mask_scores: NDArray[np.float32] | None = None
    is_key: bool | None = None
    track_ids: NDArray[np.int64] | None = None
    counts: Counts | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, index in zip(self.boxes_xyxy, self.scores, self.classes, strict=True):
            yield Detection(box, float(score), int(index), self.names[index])

    def __getitem__(self, index: slice | NDArray[Any] | list[int]) -> Detections:
        """A part of them: `detections[detections.scores > 0.5]`, `detections[:10]`."""
        return Detections(
            self.boxes_xyxy[index],
            self.scores[index],
            self.classes[index],
            self.names,
            None if self.masks is None else self.masks[index],
            None if self.mask_scores is None else self.mask_scores[index],
            self.is_key,
            None if self.track_ids is None else self.track_ids[index],
            self.counts,
        )

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Entries of a COCO results file.

        Args:
            image_id: the data set's.
            category_ids: the data set's id of each class, as in the manifest.

        Returns:
            [{"image_id", "category_id", "bbox": [x, y, width, height], "score"}], and where there
            are masks "segmentation": {"size": [H, W], "counts": compressed run lengths}; of models
            that score masks apart "mask_score", by which masks are to be ranked; of tracked ones
            "track_id".
        """
        entries: list[dict[str, Any]] = []
        for box, score, index, _ in self:
            x1, y1, x2, y2 = box.tolist()
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": int(category_ids[index]),
                    "bbox": [round(x1, 3), round(y1, 3), round(x2 - x1, 3), round(y2 - y1, 3)],
                    "score": round(score, 6),
                }
            )
        return self._with_more(entries)

    def to_json(self) -> dict[str, Any]:
        """{"detections": [{"box_xyxy", "score", "class", "name"}]}, plain Python values.

        Where there are masks, with "segmentation" and perhaps "mask_score" as of `to_coco`; of a
        temporal model with "is_key" beside the detections. Tracked ones have "track_id", null where
        there is none; where something counts, "lines" and "zones" stand beside them, see `Counts`.
        """
        entries: list[dict[str, Any]] = [
            {
                "box_xyxy": [round(side, 2) for side in box.tolist()],
                "score": round(score, 4),
                "class": index,
                "name": name,
            }
            for box, score, index, name in self
        ]
        told = {} if self.is_key is None else {"is_key": self.is_key}
        counted = {} if self.counts is None else self.counts.to_json()
        return {**told, "detections": self._with_more(entries), **counted}

    def _with_more(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.masks is not None:
            for row, entry in enumerate(entries):
                entry["segmentation"] = self.masks.rle(row)
        if self.mask_scores is not None:
            for entry, score in zip(entries, self.mask_scores, strict=True):
                entry["mask_score"] = round(float(score), 6)
        if self.track_ids is not None:
            for entry, track_id in zip(entries, self.track_ids.tolist(), strict=True):
                entry["track_id"] = None if track_id < 0 else track_id
        return entries
