"""How well a mask covers its object, told from the mask alone (YOLACT++, arXiv:1912.06218, 3.5)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from training.errors import TrainingError

KERNEL, STRIDE = 3, 2


class MaskRescoring(nn.Module):
    """Soft masks to the IoU that each would have as an object of every class.

    Unpadded 3x3 convolutions of stride 2, one of 1x1, a ReLU after each, and the largest value of
    what is left of the mask.

    Args:
        widths: channels of the 3x3 convolutions.
        num_classes: K.
    """

    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels = (1, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, KERNEL, STRIDE) for a, b in zip(channels, widths, strict=False)
        )
        self.predict = nn.Conv2d(widths[-1], num_classes, 1)
        for conv in (*self.convs, self.predict):
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        nn.init.constant_(self.predict.bias, 0.5)  # a ReLU that begins below 0 learns nothing

    def forward(self, masks: Tensor) -> Tensor:
        """(N, h, w) float32, 0..1, cropped to their boxes, to (N, K) float32, 0 and above."""
        feature = masks[:, None]
        for conv in self.convs:
            feature = functional.relu(conv(feature))
        return functional.relu(self.predict(feature)).amax((2, 3)).float()


def check_mask_size(size_hw: tuple[int, int], num_convs: int) -> None:
    """Refuse prototypes of which the convolutions would leave nothing.

    Raises:
        TrainingError: too small.
    """
    least = 2 ** (num_convs + 1) - 1  # each leaves (n - 1) // 2 pixels of n
    if min(size_hw) < least:
        raise TrainingError(
            f"the prototypes have {size_hw[1]}x{size_hw[0]} pixels; the re-scoring of masks needs "
            f"{least} on either side. Choose a larger --size."
        )
