"""Backbones from timm, held to the strides that the pyramids expect."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from training.errors import TrainingError
from training.layers.block_features import BlockFeatures
from training.layers.deformable import deform_stages

STRIDES = (2, 4, 8, 16, 32)


def make_backbone(
    name: str,
    arguments: tuple[tuple[str, Any], ...],
    *,
    num_levels: int = 3,
    is_pretrained: bool = False,
) -> nn.Module:
    """A network that gives its last feature maps, of strides 8, 16, 32; with four levels 4 too,
    with five 2 as well.

    Args:
        name: any of timm.list_models().
        arguments: for timm.create_model, and three of ours: "leaky_slope", of every leaky ReLU;
            "blocks", the stages of a MobileNet or EfficientNet that are taken in place of timm's;
            and "deform_every", see `deform_stages`.
        num_levels: 3 to 5.
        is_pretrained: fetch timm's weights.

    Raises:
        TrainingError: timm cannot make it or fetch its weights, or its strides are others.
    """
    options = dict(arguments)
    blocks, slope = options.pop("blocks", None), options.pop("leaky_slope", None)
    deform_every = options.pop("deform_every", 0)
    if blocks is None:
        options |= {"features_only": True, "out_indices": tuple(range(-num_levels, 0))}
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=is_pretrained, **options)
        if blocks is not None:
            backbone = BlockFeatures(backbone, blocks)
    except OSError as error:
        raise TrainingError(
            f"the pretrained weights of {name!r} cannot be fetched ({error}). "
            "Connect to the network, or train with --init scratch."
        ) from None
    except (RuntimeError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"timm cannot make the backbone {name!r} ({error}); expected a name that "
            "timm.list_models() shows and that gives feature maps."
        ) from None
    strides = tuple(backbone.feature_info.reduction())
    if strides != STRIDES[-num_levels:]:
        raise TrainingError(
            f"backbone {name!r} gives strides {strides}; expected "
            f"{STRIDES[-num_levels:]}. Choose a convolutional backbone with five stages."
        )
    if deform_every:
        deform_stages(backbone, deform_every)
    if slope is not None:
        for module in backbone.modules():
            if isinstance(module, nn.LeakyReLU):
                module.negative_slope = slope
    return backbone


def run_to_level(backbone: nn.Module, images: Tensor, num_levels: int) -> list[Tensor]:
    """The first feature maps of a backbone, without running what lies behind them.

    Args:
        backbone: of `make_backbone`.
        images: (B, 3, H, W). num_levels: how many of the backbone's maps.

    Raises:
        TrainingError: the backbone is no plain row of stages.
    """
    taken = getattr(backbone, "return_layers", None)
    if not isinstance(backbone, nn.ModuleDict) or taken is None:
        raise TrainingError(
            "the backbone cannot be run in part, which frames between key frames need; expected a "
            "timm network that is a row of stages, such as resnet50."
        )
    feature, features = images, []
    for name, stage in backbone.items():
        feature = stage(feature)
        if name in taken:
            features.append(feature)
        if len(features) == num_levels:
            break
    return features
