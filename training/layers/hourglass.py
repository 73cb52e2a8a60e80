"""Stacked hourglasses (Newell et al., arXiv:1603.06937): bottom-up, top-down, again and again."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from training.errors import TrainingError

STRIDE = 4  # of the stem and of all that a stack gives


class Residual(nn.Module):
    """Bottleneck with pre-activation (section 3.2, figure 4): 1x1, 3x3, 1x1 on half the channels.

    The way past it is a 1x1 convolution where the number of channels changes.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = max(1, channels_out // 2)
        layers: list[nn.Module] = []
        widths = (channels_in, half, half, channels_out)
        for (before, after), kernel in zip(pairwise(widths), (1, 3, 1), strict=True):
            layers += [nn.BatchNorm2d(before), nn.ReLU()]
            layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2)]
        self.body = nn.Sequential(*layers)
        is_same = channels_in == channels_out
        self.past = nn.Identity() if is_same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, channels_in, h, w) to (B, channels_out, h, w)."""
        return self.past(feature) + self.body(feature)


class Hourglass(nn.Module):
    """One hourglass (section 3.1, figure 3): halved `depth` times, enlarged as often, with skips.

    Args:
        channels: of what enters, leaves and lies between.
        depth: how often the map is halved, 1 or more; sides that are odd are rounded down.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.skip = Residual(channels, channels)
        self.before = Residual(channels, channels)
        inner = Hourglass(channels, depth - 1) if depth > 1 else Residual(channels, channels)
        self.inner = inner
        self.after = Residual(channels, channels)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        skipped = self.skip(feature)
        small = self.after(self.inner(self.before(functional.max_pool2d(feature, 2))))
        return skipped + functional.interpolate(small, size=feature.shape[-2:], mode="nearest")


class HourglassStem(nn.Module):
    """Images to features of stride 4 (section 3.2): a 7x7 convolution, pooling, residuals."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = max(8, channels // 4)
        self.conv = nn.Conv2d(3, first, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.wide = Residual(first, channels // 2)
        self.same = Residual(channels // 2, channels // 2)
        self.full = Residual(channels // 2, channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C, H / 4, W / 4), rounded down."""
        feature = functional.relu(self.norm(self.conv(images)))
        return self.full(self.same(functional.max_pool2d(self.wide(feature), 2)))


class StackedHourglass(nn.Module):
    """Hourglasses in a row; each gives features, and predicts, so that each can be supervised.

    What a stack gives and what it predicts are both brought back to its input's channels and
    added to it (section 3.3): that sum is what the next stack sees.

    Args:
        channels: of all features, even.
        num_stacks: 1 or more.
        depth: of each hourglass.
        num_maps: maps that each stack predicts, by a 1x1 convolution; 0 leaves predicting to the
            caller, as the hourglass of CenterNet has it.

    Raises:
        TrainingError: a number is below these.
    """

    def __init__(self, channels: int, num_stacks: int, depth: int, num_maps: int = 0) -> None:
        super().__init__()
        if channels < 2 or channels % 2 or num_stacks < 1 or depth < 1:
            raise TrainingError(
                f"{num_stacks} hourglasses of {channels} channels and depth {depth}; expected one "
                "or more, an even number of channels, depth 1 or more. Correct the spec."
            )
        self.stem = HourglassStem(channels)
        self.hourglasses = nn.ModuleList(Hourglass(channels, depth) for _ in range(num_stacks))
        self.features = nn.ModuleList(
            nn.Sequential(
                Residual(channels, channels),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            )
            for _ in range(num_stacks)
        )
        count = num_stacks if num_maps else 0
        self.predict = nn.ModuleList(nn.Conv2d(channels, num_maps, 1) for _ in range(count))
        between = num_stacks - 1
        self.back = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(between))
        self.back_predicted = nn.ModuleList(
            nn.Conv2d(num_maps, channels, 1) for _ in range(between if num_maps else 0)
        )

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Run on (B, 3, H, W) float32, normalised.

        Returns:
            (B, C, h, w) features of each stack, and (B, num_maps, h, w) predictions of each, of
            stride 4; no predictions where `num_maps` is 0.
        """
        feature = self.stem(images)
        features: list[Tensor] = []
        maps: list[Tensor] = []
        for stack, (hourglass, convs) in enumerate(
            zip(self.hourglasses, self.features, strict=True)
        ):
            features.append(convs(hourglass(feature)))
            if len(self.predict):
                maps.append(self.predict[stack](features[-1]))
            if stack < len(self.back):
                feature = feature + self.back[stack](features[-1])
                if maps:
                    feature = feature + self.back_predicted[stack](maps[-1])
        return features, maps
