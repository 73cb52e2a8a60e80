"""Other projects' checkpoints: their names for tensors and ours.

Face detectors stand in `training.published_faces`. Else known are YOLACT's
(github.com/dbolya/yolact) with ResNet or DarkNet-53, its YOLACT++ with ResNet, and YolactEdge's
(github.com/haotian-liu/yolact_edge): image models with ResNet or MobileNetV2, video models with
ResNet. All list the levels of their pyramid from the coarsest on; YolactEdge keeps the pyramid in
two halves. What video models have beside it stands in `training.published_video`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.data import coco_names, youtube_vis_names
from training.errors import CheckpointError, TrainingError
from training.models import build_model, model_variant
from training.models.base import Model
from training.published_faces import MODEL as FACE_MODEL
from training.published_faces import is_published_face, make_face_model, rename_faces
from training.published_video import FIRST, UNUSED, flow_name, is_published_video, split_first
from training.published_video import MODEL as VIDEO_MODEL

NAMED = 5  # tensors that an error names
MODEL = "yolact"
LAST_RESCORING = 5  # number of the last convolution that re-scores masks
SIZE = 550  # side of the input, pixels
STRIDES = (8, 16, 32, 64, 128)
SIDES = (24, 48, 96, 192, 384)  # of the anchors, pixels; at other sizes in proportion, cut to whole


def _reversed_level(target: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f"{target}.{2 - int(found[1])}.0."


def _half(found: re.Match[str]) -> str:
    return f"prototypes.coarse.{int(found[1]) // 2}.0."


def _resnet_block(found: re.Match[str]) -> str:
    return f"backbone.layer{int(found[1]) + 1}.{found[2]}.{found[3]}."


def _darknet_block(found: re.Match[str]) -> str:
    part = ("conv", "bn")[int(found[4])]
    return f"backbone.stages_{found[1]}.blocks.{int(found[2]) - 1}.{found[3]}.{part}."


def _darknet_down(found: re.Match[str]) -> str:
    return f"backbone.stages_{found[1]}.conv_down.{('conv', 'bn')[int(found[2])]}."


def _rescoring(found: re.Match[str]) -> str:
    number = int(found[1]) // 2
    return "rescoring.predict." if number == LAST_RESCORING else f"rescoring.convs.{number}."


_FIRST_MOBILE = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
_MOBILE = {
    "0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3",
}  # fmt: skip


def _mobile_block(found: re.Match[str]) -> str:
    stage = int(found[1])
    layer = (_FIRST_MOBILE if stage == 1 else _MOBILE)[found[3]]
    return f"backbone.blocks.{stage - 1}.{found[2]}.{layer}."


# What a published name begins with, and what ours does. The first that fits counts.
_RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"backbone\.(conv1|bn1)\.", r"backbone.\1."),
    (r"backbone\.layers\.(\d)\.(\d+)\.(conv\d|bn\d|downsample\.[01])\.(?!\d)", _resnet_block),
    (r"backbone\._preconv\.0\.", "backbone.stem_conv1.conv."),
    (r"backbone\._preconv\.1\.", "backbone.stem_conv1.bn."),
    (r"backbone\.layers\.(\d)\.0\.([01])\.(?!\d)", _darknet_down),
    (r"backbone\.layers\.(\d)\.(\d+)\.(conv[12])\.([01])\.", _darknet_block),
    (r"backbone\.layers\.0\.0\.", "backbone.conv_stem."),
    (r"backbone\.layers\.0\.1\.", "backbone.bn1."),
    (r"backbone\.layers\.([1-6])\.(\d+)\.conv\.(\d(?:\.\d)?)\.", _mobile_block),
    (r"(?:fpn|fpn_phase_1)\.lat_layers\.([012])\.", _reversed_level("pyramid.laterals")),
    (r"(?:fpn|fpn_phase_2)\.pred_layers\.([012])\.", _reversed_level("pyramid.outputs")),
    (r"(?:fpn|fpn_phase_2)\.downsample_layers\.0\.", "pyramid.p6.0."),
    (r"(?:fpn|fpn_phase_2)\.downsample_layers\.1\.", "pyramid.p7.0."),
    (r"proto_net\.([024])\.", _half),
    (r"proto_net\.8\.", "prototypes.fine.0.0."),
    (r"proto_net\.10\.", "prototypes.predict."),
    (r"prediction_layers\.0\.upfeature\.0\.", "shared.convs.0."),
    (r"prediction_layers\.0\.conf_layer\.", "scores.predict."),
    (r"prediction_layers\.0\.bbox_layer\.", "boxes.predict."),
    (r"prediction_layers\.0\.mask_layer\.", "coefficients.predict."),
    (r"semantic_seg_conv\.", "semantic."),
    (r"maskiou_net\.maskiou_net\.(0|2|4|6|8|10)\.", _rescoring),
)

# What the published networks hold without using it: blocks under a second name and downsamplings
# of files from 2019, and the end of MobileNetV2 behind the last level that is taken.
_UNUSED = re.compile(
    r"backbone\.layer\d|fpn\.downsample_layers\.[2-9]|backbone\.layers\.(7\.\d+\.conv|8\.[01])\."
)


def our_name(key: str) -> str | None:
    """Our name for a tensor of a published checkpoint; None where it is unknown.

    Args:
        key: such as "backbone.layers.0.2.conv1.weight".
    """
    for pattern, replacement in _RENAMED:
        renamed, count = re.subn(f"^{pattern}", replacement, key)
        if count:
            return renamed
    return flow_name(key)


def is_published(names: Iterable[str]) -> bool:
    """Whether the names are those of a checkpoint that this module knows."""
    return published_model(names) is not None


def published_model(names: Iterable[str]) -> str | None:
    """The registered name of the model that a published checkpoint is of; None for any other."""
    names = set(names)
    if {"prediction_layers.0.conf_layer.weight", "proto_net.0.weight"} <= names:
        return VIDEO_MODEL if is_published_video(names) else MODEL
    return FACE_MODEL if is_published_face(names) else None


def size_in_name(path: Path) -> int | None:
    """The side of the input by the file's name, such as "im700"; None where it does not say."""
    found = re.search(r"_im([1-9][0-9]{2})(?![0-9])", path.name)
    return int(found[1]) if found else None


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`; nothing in it is run.

    Raises:
        CheckpointError: no such file, or it holds other than tensors by name.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no file {path}; expected a published checkpoint (.pth). Download it first."
        ) from None
    except Exception as error:  # torch's reader raises any type at damaged bytes
        line = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path} cannot be read as tensors ({line[0] if line else 'it is empty'}); expected a "
            "published checkpoint (.pth). Download it again."
        ) from None
    is_plain = isinstance(found, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    )
    if not is_plain:
        raise CheckpointError(
            f"{path} holds {type(found).__name__} with other things than tensors; expected a plain "
            "state dict. Save the network's state_dict() alone."
        )
    return found


def recognise_variant(tensors: Mapping[str, Tensor]) -> str:
    """The variant that a published checkpoint is of, told by its backbone."""
    if any(key.startswith("backbone._preconv.") for key in tensors):
        return "darknet53"
    if "backbone.layers.1.0.conv.0.0.weight" in tensors:
        return "mobilenetv2"
    blocks = {key.split(".")[3] for key in tensors if key.startswith("backbone.layers.2.")}
    variant = {6: "resnet50", 23: "resnet101"}.get(len(blocks))
    if variant is None:
        raise CheckpointError(
            f"the checkpoint's third stage has {len(blocks)} blocks; expected 6 (ResNet-50) or 23 "
            "(ResNet-101), or DarkNet-53 or MobileNetV2. Other backbones are not imported."
        )
    is_deformable = any(".conv_offset_mask." in key for key in tensors)
    return f"plus_{variant}" if is_deformable else variant


def import_published(
    tensors: Mapping[str, Tensor], *, size: int | None = None, classes: tuple[str, ...] = ()
) -> Model:
    """A model of ours with the weights of a published checkpoint, in eval mode.

    Args:
        size: side of its input, pixels; the tensors do not tell it (`size_in_name`). None takes
            what is usual.
        classes: names in the checkpoint's order, without background; empty takes those of its
            data: COCO's 80, YouTube VIS' 40 of a video model, or "face".

    Raises:
        CheckpointError: as `load_published`.
        TrainingError: the number of classes is not the checkpoint's.
    """
    _check_published(tensors)
    name = published_model(tensors)
    if name == FACE_MODEL:
        model = make_face_model(tensors, size, classes)
        load_published(model, tensors)
        return model.eval()
    size = size or SIZE
    rows = len(tensors["prediction_layers.0.conf_layer.weight"])
    assert name is not None, "checked above"
    usual = youtube_vis_names if name == VIDEO_MODEL else coco_names
    ids = tuple(range(1, len(classes) + 1)) if classes else usual.CATEGORY_IDS
    classes = classes or usual.CLASSES
    spec = model_variant(name, recognise_variant(tensors)).spec
    shapes = len(spec.octaves) * len(spec.ratios)  # of a cell
    if rows != shapes * (len(classes) + 1):
        raise TrainingError(
            f"{len(classes)} classes for a checkpoint of {rows / shapes - 1:g}; expected the names "
            "of all of them in its order. Give them to training/import_published.py with --classes."
        )
    if size != SIZE:
        scales = tuple(
            int(s / SIZE * size) / stride for s, stride in zip(SIDES, STRIDES, strict=True)
        )
        spec = dataclasses.replace(spec, size_hw=(size, size), anchor_scale=scales)
    model = build_model(name, dataclasses.replace(spec, classes=classes, category_ids=ids))
    load_published(model, tensors)
    return model.eval()


def _check_published(tensors: Mapping[str, Tensor]) -> None:
    if not is_published(tensors):
        first = ", ".join(list(tensors)[:NAMED]) or "nothing"
        raise CheckpointError(
            f"the checkpoint holds {first}; expected tensors named as YOLACT, YolactEdge or "
            "RetinaFace (also slim, RFB) name them. Give one of their published files."
        )


def _rename(
    tensors: Mapping[str, Tensor], own: Container[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by our names, and the keys that have no place among `own`."""
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, value in tensors.items():
        if _UNUSED.match(key) or UNUSED.match(key):
            continue
        name = our_name(key)
        placed = split_first(key, value) if key.startswith(FIRST) else {name: value}
        if any(name not in own for name in placed):
            unknown.append(key)
        else:
            renamed |= placed
    return renamed, unknown


def load_published(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Fill a model of ours with a published checkpoint; every tensor is used or refused.

    Args:
        model: of the variant that the checkpoint is of, with as many classes.
        tensors: the published state dict, as torch.load(path, weights_only=True) gives it.

    Raises:
        CheckpointError: not a checkpoint that is known, tensors that the model has no place for,
            places that stay empty, or other shapes; nothing was changed then.
    """
    _check_published(tensors)
    own = model.state_dict()
    if published_model(tensors) == FACE_MODEL:
        renamed, unknown = rename_faces(tensors, own)
    else:
        renamed, unknown = _rename(tensors, own)
    empty = [name for name in own if name not in renamed]
    odd = [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in renamed.items()
        if value.shape != own[name].shape
    ]
    for problem, names in (
        ("tensors that the model has no place for", unknown),
        ("nothing for tensors of the model", empty),
        ("tensors of another shape", odd),
    ):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise CheckpointError(
                f"the checkpoint has {problem}: {', '.join(names[:NAMED])}{more}. Build the "
                "variant that it is of, with its number of classes."
            )
    model.load_state_dict({name: value.to(own[name].dtype) for name, value in renamed.items()})
