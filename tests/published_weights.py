"""The published networks without their files: tensors' names, weights by a rule, answers to them.

`training/published/keys.json.gz` holds the names and shapes of the official networks' tensors,
`yolact_resnet50.npz` and `yolact_resnet50_found.npz` beside it what the official code gave for
weights filled by the rule `filled` and the image of `normalised_image`: raw numbers, and the
detections of its Fast NMS.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "training" / "published"
KEYS: dict[str, dict[str, list[int]]] = json.loads(
    gzip.decompress((FOLDER / "keys.json.gz").read_bytes())
)


def filled(key: str, shape: list[int]) -> Tensor:
    """The weight that the rule gives a tensor, from its name alone."""
    draw = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith(("running_mean", "bias")):
        values = 0.1 * draw.standard_normal(shape)
    elif key.endswith("running_var"):
        values = draw.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = draw.uniform(0.3, 0.6, shape)
    else:
        values = draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        values *= 6 if "conf_layer" in key else 0.5 if "bbox_layer" in key else 1
    return torch.from_numpy(np.asarray(values, np.float32))


def filled_tensors(published: str) -> dict[str, Tensor]:
    """The state dict of a published network, filled by the rule."""
    return {key: filled(key, shape) for key, shape in KEYS[published].items()}


def flat_tensors(published: str) -> dict[str, Tensor]:
    """The same names, each tensor one number repeated: a file of them is small and made at once."""
    draw = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(1, generator=draw).expand(shape) if shape else torch.tensor(3)
        for key, shape in KEYS[published].items()
    }


def normalised_image() -> Tensor:
    """(1, 3, 550, 550) float32, as it enters the network."""
    values = np.random.default_rng(7).standard_normal((1, 3, 550, 550))
    return torch.from_numpy(values.astype(np.float32))
