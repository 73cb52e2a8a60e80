"""Sets of joints: their names, limbs, mirror pairs and COCO constants.

Left and right are the person's own, as in COCO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OTHER_SIGMA = 0.05  # of a joint that COCO has no constant for
MIRRORED = (("left", "right"), ("l_", "r_"))  # words that names of a pair differ in

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class JointSet:
    """What the joints of a data set or a network are.

    Attributes:
        joints: J names. skeleton: pairs of indices into them, the limbs that are drawn.
        flip_pairs: pairs that change names in a mirror.
        sigmas: J constants of COCO's object keypoint similarity, in units of the object's size.
    """

    joints: tuple[str, ...] = ()
    skeleton: Pairs = ()
    flip_pairs: Pairs = ()
    sigmas: tuple[float, ...] = ()

    @classmethod
    def of_names(cls, names: Sequence[str], skeleton: Sequence[Sequence[int]] = ()) -> JointSet:
        """The set of a data set that gives names and limbs alone.

        Pairs are names that differ in left and right alone; a joint that COCO names has COCO's
        sigma, any other 0.05.
        """
        known = dict(zip(PERSON_JOINTS.joints, PERSON_JOINTS.sigmas, strict=True))
        if tuple(names) == FACE_LANDMARKS.joints:
            known = {}
        return cls(
            tuple(names),
            tuple((int(a), int(b)) for a, b in skeleton),
            find_flip_pairs(names),
            tuple(known.get(name, OTHER_SIGMA) for name in names),
        )

    def fields(self) -> dict[str, Any]:
        """Its fields by name, as a `KeypointSpec` and a source of samples have them."""
        return {name: getattr(self, name) for name in self.__slots__}


def find_flip_pairs(names: Sequence[str]) -> Pairs:
    """Pairs of names that differ in left and right alone: ("left_eye", "right_eye")."""
    places = {name.lower(): place for place, name in enumerate(names)}
    pairs = []
    for name, place in places.items():
        for left, right in MIRRORED:
            other = places.get(name.replace(left, right, 1)) if left in name else None
            if other is not None:
                pairs.append((place, other))
                break
    return tuple(pairs)


PERSON_JOINTS = JointSet(  # COCO's
    joints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder",
        "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
        "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7),
        (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107,
        0.107, 0.087, 0.087, 0.089, 0.089,
    ),
)  # fmt: skip
# In the order of WIDER FACE's landmarks, whose first eye is the one on the left of the picture.
FACE_LANDMARKS = JointSet(
    joints=("right_eye", "left_eye", "nose", "right_mouth_corner", "left_mouth_corner"),
    skeleton=((0, 2), (1, 2), (2, 3), (2, 4), (3, 4)),
    flip_pairs=((0, 1), (3, 4)),
    sigmas=(OTHER_SIGMA,) * 5,  # COCO's are of the size of a whole person, not of a face
)
