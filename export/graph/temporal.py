"""The two graphs of a model for video: a key frame in full, and a frame that leans on one."""

from __future__ import annotations

from torch import Tensor, nn

from runtime.contract.outputs import KEY, NONKEY

STATE_SUFFIX = "_key"  # of what NONKEY takes, on the name of what KEY gave


def state_inputs(names: tuple[str, ...]) -> dict[str, str]:
    """The manifest's `state` of the names that a model gives its state: output -> input."""
    return {name: f"{name}{STATE_SUFFIX}" for name in names}


class KeyFrame(nn.Module):
    """Raw frame and thresholds to the task's outputs, and the state that the frame leaves.

    Args:
        whole: the task's `EndToEnd` of a TemporalModel.
    """

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.model, self.input, self.answer = whole.model, whole.input, whole.answer

    def forward(
        self, image: Tensor, score_threshold: Tensor, iou_threshold: Tensor
    ) -> tuple[Tensor, ...]:
        """Inputs as of the task's `EndToEnd`; its outputs, then the state (B, C, h, w) each."""
        raw, state = self.model.key(self.input(image))
        answer = self.answer(raw, score_threshold, iou_threshold)
        return (*answer, *(state[name] for name in self.model.state_names))


class NonkeyFrame(nn.Module):
    """Raw frame, thresholds and a key frame's state to the task's outputs and `change`.

    Args:
        whole: the task's `EndToEnd` of a TemporalModel.
    """

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.model, self.input, self.answer = whole.model, whole.input, whole.answer

    def forward(
        self,
        image: Tensor,
        score_threshold: Tensor,
        iou_threshold: Tensor,
        state: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Inputs as of the task's `EndToEnd`, and the state; its outputs, then change (B,)."""
        named = dict(zip(self.model.state_names, state, strict=True))
        raw, change = self.model.nonkey(self.input(image), named)
        return (*self.answer(raw, score_threshold, iou_threshold), change)


FRAMES: dict[str, type[nn.Module]] = {KEY: KeyFrame, NONKEY: NonkeyFrame}
