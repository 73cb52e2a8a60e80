"""Clips to prove a model for video on, and what PyTorch answers to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from export.graph.end_to_end import end_to_end, outputs_of_model, state_of
from export.proof.frames import proof_samples
from runtime.contract.matching import Rows
from runtime.contract.outputs import CHANGE, KEY, NONKEY
from training.data import DataError, open_data
from training.data.clips import open_clips
from training.data.geometry import warp
from training.data.sample import Sample
from training.models.base import Model, Spec
from training.tasks.detection import fit_input

CLIP_KIND = "fast"  # of the street: motion that a frame between key frames must make up for
SHIFT_SHARE, ZOOM = 0.008, 1.01  # a frame's motion where pictures are made to move


def labelled_clips(
    data: str, count: int, length: int, labels: tuple[str, ...] = ()
) -> list[list[Sample]]:
    """Clips of the validation split, in source pixels.

    A data set that has none gives its pictures, each moved a little further from frame to frame, as
    by a camera that pans and comes nearer.

    Args:
        data: as of `open_data`.
        count, length: clips, and frames of each; fewer where the data set has fewer.
        labels: that the samples carry beside boxes.
    """
    try:
        source = open_clips(data, "val", kind=CLIP_KIND, num_frames=length)
    except DataError:
        pictures = proof_samples(open_data(data, "val", labels), count)
        return [moving(each, length, turn) for turn, each in enumerate(pictures)]
    clips = (source[place] for place in range(min(count, len(source))))
    return [[clip.frame(n) for n in range(min(length, len(clip)))] for clip in clips]


def moving(sample: Sample, length: int, turn: int = 0) -> list[Sample]:
    """A picture as a clip: `turn` chooses which of four ways it goes."""
    height, width = sample.image_hw
    step = width * SHIFT_SHARE * np.array(((1, 0), (0, 1), (-1, 0), (0, -1))[turn % 4])
    frames = []
    for n in range(length):
        zoom = ZOOM**n
        shift = (1 - zoom) * np.array((width, height)) / 2 + n * step
        matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
        moved = warp(sample, matrix, sample.image_hw)
        moved.image_id = sample.image_id * length + n
        frames.append(moved)
    return frames


def network_clips(
    data: str, spec: Spec, count: int, length: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Key frames (N, H, W, 3) and the length - 1 frames after each, in order, at network size."""
    clips = [clip for clip in labelled_clips(data, count, length) if len(clip) == length]
    if not clips:
        raise DataError(f"{data} has no clip of {length} frames. Give longer ones, or pictures.")
    frames = np.stack([[fit_input(sample, spec).image for sample in clip] for clip in clips])
    return frames[:, 0], frames[:, 1:].reshape(-1, *frames.shape[2:])


class TorchStream:
    """A model for video in PyTorch, fed as the stream of a session is: state stays inside."""

    def __init__(self, model: Model) -> None:
        self._modules = {
            graph: end_to_end(model, graph, is_folded=False) for graph in (KEY, NONKEY)
        }
        self._names = [spec.name for spec in outputs_of_model(model) if spec != CHANGE]
        self._num_state = len(state_of(model))
        self._state: tuple[torch.Tensor, ...] = ()

    @torch.no_grad()
    def run(self, feeds: Rows, graph: str) -> Rows:
        """One batch of frames; NONKEY leans on the last KEY, which must have come before."""
        given = [torch.from_numpy(value) for value in feeds.values()]
        if graph == NONKEY:
            assert self._state, "a key frame comes first"
            outputs = self._modules[NONKEY](*given, self._state)
            return dict(zip([*self._names, CHANGE.name], _arrays(outputs), strict=True))
        outputs = self._modules[KEY](*given)
        self._state = outputs[-self._num_state :]
        return dict(zip(self._names, _arrays(outputs[: -self._num_state]), strict=True))


def _arrays(outputs: tuple[torch.Tensor, ...]) -> list[NDArray]:
    return [output.numpy() for output in outputs]


def clip_results(model: Model, feeds: Mapping[str, Rows]) -> dict[str, Rows]:
    """What PyTorch answers to the samples of a bundle, one frame at a time.

    Args:
        feeds: of KEY (N, ...) and NONKEY (N * n, ...): n frames after each key frame, in order.
    """
    stream = TorchStream(model)
    rows: dict[str, list[Rows]] = {KEY: [], NONKEY: []}
    for graph, index in in_order(len(feeds[KEY]["image"]), len(feeds[NONKEY]["image"])):
        one = {name: value[index : index + 1] for name, value in feeds[graph].items()}
        rows[graph].append(stream.run(one, graph))
    return {graph: _joined(each) for graph, each in rows.items()}


def in_order(num_keys: int, num_others: int) -> Iterator[tuple[str, int]]:
    """Graph and index of samples as they are run: each key frame, then those that lean on it."""
    each = num_others // num_keys
    for key in range(num_keys):
        yield KEY, key
        yield from ((NONKEY, index) for index in range(key * each, (key + 1) * each))


def _joined(rows: list[Rows]) -> Rows:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def interval_graphs(length: int, interval: int) -> list[str]:
    """The graph of each frame of a clip with a key frame every `interval` frames."""
    return [NONKEY if place % interval else KEY for place in range(length)]
