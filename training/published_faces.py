"""Published face detectors: their names for tensors and ours.

Known are RetinaFace with MobileNet x0.25 or ResNet-50 (github.com/biubug6/Pytorch_Retinaface) and
slim and RFB (github.com/biubug6/Face-Detector-1MB-with-landmark), saved with or without `module.`
before every name. The MobileNet of the second project bears the same names and shapes as the
first's, but has plain ReLUs and other anchors: no tensor tells, so it is not recognised.

The published networks read BGR, ours RGB: the first convolution's input channels change places.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Iterable, Mapping

from torch import Tensor

from training.errors import CheckpointError, TrainingError
from training.models import build_model, model_variant
from training.models.base import Model

MODEL = "retinaface"
PREFIX = "module."  # of torch's DataParallel
FIRST_CONVS = ("backbone.stem.0.weight", "backbone.conv1.weight")
CONTEXTS = {
    "conv3x3": "three", "conv5x5_1": "shared", "conv5x5_2": "five", "conv7x7_2": "seven.0",
    "conv7x7_3": "seven.1",
}  # fmt: skip
HEADS = {
    "ClassHead": "scores", "BboxHead": "boxes", "LandmarkHead": "landmarks",
    "conf": "scores", "loc": "boxes", "landm": "landmarks",
}  # fmt: skip

Rename = str | Callable[[re.Match[str]], str]


def _first_stage(found: re.Match[str]) -> str:
    block = int(found[1])
    return f"backbone.levels.0.{block - 1}." if block else "backbone.stem."


def _stage(found: re.Match[str]) -> str:
    return f"backbone.levels.{int(found[1]) - 1}."


def _counted(target: str) -> Callable[[re.Match[str]], str]:
    """Levels that are counted from 1."""
    return lambda found: f"{target}.{int(found[1]) - 1}."


def _context(found: re.Match[str]) -> str:
    return f"contexts.{int(found[1]) - 1}.{CONTEXTS[found[2].lower()]}."


def _head(found: re.Match[str]) -> str:
    return f"{HEADS[found[1]]}.{found[2]}."


def _block(found: re.Match[str]) -> str:
    return f"backbone.blocks.{int(found[1]) - 2}."


def _branch(found: re.Match[str]) -> str:
    return f"backbone.blocks.6.branches.{found[1]}.{found[2]}.{('conv', 'bn').index(found[3])}."


def _joined(found: re.Match[str]) -> str:
    part = {"ConvLinear": "join", "shortcut": "shortcut"}[found[1]]
    return f"backbone.blocks.6.{part}.{('conv', 'bn').index(found[2])}."


_NUMBERED = r"\d\.(?:weight|bias|running_mean|running_var|num_batches_tracked)$"

# What a published name begins with, and what ours does. The first that fits counts.
_RENAMED: tuple[tuple[str, Rename], ...] = (
    (rf"body\.stage1\.([0-5])\.(?={_NUMBERED})", _first_stage),
    (rf"body\.stage([23])\.(?=\d\.{_NUMBERED})", _stage),
    (r"body\.(conv1|bn1|layer[1-4])\.", r"backbone.\1."),
    (r"fpn\.output([123])\.", _counted("pyramid.laterals")),
    (r"fpn\.merge([12])\.", _counted("pyramid.merges")),
    (r"ssh([123])\.(conv3X3|conv5X5_[12]|conv7X7_2|conv7x7_3)\.", _context),
    (r"(ClassHead|BboxHead|LandmarkHead)\.([012])\.conv1x1\.", _head),
    (r"conv8\.branch([012])\.(\d)\.(conv|bn)\.", _branch),
    (r"conv8\.(ConvLinear|shortcut)\.(conv|bn)\.", _joined),
    (r"conv14\.0\.", "backbone.squeeze."),
    (r"conv14\.2\.", "backbone.last."),
    (rf"conv1\.(?={_NUMBERED})", "backbone.stem."),
    (rf"conv([2-9]|1[0-3])\.(?={_NUMBERED})", _block),
    (r"(loc|conf|landm)\.([0-3])\.", _head),
)


def our_face_name(key: str) -> str | None:
    """Our name for a tensor of a published face detector; None where it is unknown.

    Args:
        key: such as "ssh1.conv3X3.0.weight", with or without `module.`.
    """
    key = key.removeprefix(PREFIX)
    for pattern, replacement in _RENAMED:
        renamed, count = re.subn(f"^{pattern}", replacement, key)
        if count:
            return renamed
    return None


def is_published_face(names: Iterable[str]) -> bool:
    """Whether the names are those of a face detector that this module knows."""
    bare = {name.removeprefix(PREFIX) for name in names}
    return {"ClassHead.0.conv1x1.weight", "fpn.output1.0.weight"} <= bare or {
        "conf.0.0.weight",
        "landm.0.0.weight",
    } <= bare


def recognise_face_variant(names: Iterable[str]) -> str:
    """The variant that a published face detector is of, told by its trunk.

    Raises:
        CheckpointError: another trunk.
    """
    bare = {name.removeprefix(PREFIX) for name in names}
    for variant, name in (
        ("mobilenet025", "body.stage1.0.0.weight"),
        ("resnet50", "body.layer3.5.conv1.weight"),
        ("rfb", "conv8.branch0.0.conv.weight"),
        ("slim", "conv8.0.weight"),
    ):
        if name in bare:
            return variant
    shown = sorted(name for name in bare if name.startswith(("body.", "conv")))[:1]
    raise CheckpointError(
        f"the checkpoint's trunk begins with {', '.join(shown) or 'nothing known'}; expected "
        "MobileNet x0.25, ResNet-50, slim or RFB. Other trunks are not imported."
    )


def rename_faces(
    tensors: Mapping[str, Tensor], own: Container[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by our names, the first convolution's for RGB, and keys with no place in `own`."""
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, value in tensors.items():
        name = our_face_name(key)
        if name is None or name in renamed or name not in own:
            unknown.append(key)
        else:
            renamed[name] = value.flip(1) if name in FIRST_CONVS and value.ndim == 4 else value
    return renamed, unknown


def make_face_model(
    tensors: Mapping[str, Tensor], size: int | None, classes: tuple[str, ...]
) -> Model:
    """A model of the variant that a checkpoint is of, with fresh weights.

    Args:
        size: side of its input, pixels; None takes the variant's, which is as good as any: the
            anchors are the same at every size.
        classes: empty takes ("face",).

    Raises:
        CheckpointError: another trunk.
        TrainingError: more than one class.
    """
    spec = model_variant(MODEL, recognise_face_variant(tensors)).spec
    if len(classes) > 1:
        raise TrainingError(
            f"{len(classes)} classes for a checkpoint that knows faces alone; expected one name. "
            "Leave --classes out."
        )
    size_hw = spec.size_hw if size is None else (size, size)
    spec = dataclasses.replace(spec, classes=classes or spec.classes, size_hw=size_hw)
    return build_model(MODEL, spec)
