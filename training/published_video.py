"""YolactEdge's published video checkpoints: what they hold beside the image model's tensors.

The first convolution of its flow reads the features of both frames, the current one's first; ours
is kept as two halves (`training.layers.flow.FeatFlowNet`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

MODEL = "yolact_edge"
FIRST = "flow_net.conv1.0.0."
_LEVELS = {"2": "fine", "3": "coarse"}
_STAGES = {"2": "second", "3": "third"}

# What nothing reads: flow at the size of P3, which is not warped.
UNUSED = re.compile(r"flow_net\.(pred1|upfeat2|upflow2)\.")


def is_published_video(names: Iterable[str]) -> bool:
    """Whether the names of a YOLACT checkpoint are those of a video model."""
    return "flow_net_pre_convs.convs.0.0.weight" in set(names)


def flow_name(key: str) -> str | None:
    """Our name for a tensor of the flow and of what refines the warped; None for any other.

    Args:
        key: such as "flow_net.conv2.0.0.weight".
    """
    head, _, kind = key.rpartition(".")
    if head in _NAMES:
        return f"{_NAMES[head]}.{kind}"
    if found := re.fullmatch(r"flow_net\.conv([23])\.([01])\.0", head):
        return f"video.flow.{_STAGES[found[1]]}.{2 * int(found[2])}.{kind}"
    if found := re.fullmatch(r"flow_net\.pred([23])\.(conv|scale|bias)", head):
        part = {"conv": "flow"}.get(found[2], found[2])
        return f"video.flow.{_LEVELS[found[1]]}.{part}.{kind}"
    return None


_NAMES = {
    "flow_net_pre_convs.convs.0.0": "video.flow.reduce",
    "flow_net.conv1.1.0": "video.flow.first",
    "flow_net.upfeat3": "video.flow.up_feature",
    "flow_net.upflow3": "video.flow.up_flow",
    "spa.refine_convs.0.0": "video.refine.0",
    "spa.refine_convs.1.0": "video.refine.1",
}


def split_first(key: str, value: Tensor) -> dict[str, Tensor]:
    """The first convolution's weight or bias, by our names: of the current frame and of the key's.

    Args:
        key: `FIRST` and "weight" or "bias".
    """
    if key.endswith("bias"):
        return {"video.flow.first_now.bias": value}
    now, key_half = value.chunk(2, 1)
    return {"video.flow.first_now.weight": now, "video.flow.first_key.weight": key_half}
