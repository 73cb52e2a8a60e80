"""The stages of a run: images, then, where the network is for video, flow and whole clips.

Each stage is a run of its own in a folder of its own, with its own saved state, and begins at the
best weights of the one before; so a run that is resumed goes on in the stage that it stood in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.data.clips import open_clips
from training.data.sample import DataError, Source
from training.loop.checkpoint import read_tensors
from training.loop.lessons import ImageLesson, Lesson
from training.models.base import Model, Recipe, TemporalModel
from training.video.lessons import FlowLesson, VideoLesson

KIND = "plain+fast"  # of the street's clips that are learnt from
TRAIN_FRAMES = 6  # of each: a key frame and what may follow it
VAL_FRAMES, VAL_CLIPS = 10, 12


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a run: what is taught, how long and how."""

    lesson: Lesson
    recipe: Recipe


def plan_stages(
    model: Model,
    recipes: Mapping[str, Recipe],
    data: str,
    train: Source,
    val: Source | None,
    init: Path | None,
) -> list[Stage]:
    """The stages of a run, in their order.

    Images come first, unless `init` has taught them already; the flow is left out as well where it
    has taught that. A data set without video ends with images, as does a model of images.

    Args:
        model: to be trained.
        recipes: by stage, from "image" on.
        data: as of `open_clips`. train, val: the same data set's images.
        init: the checkpoint that the run begins at.

    Raises:
        DataError: `init` has taught images, and the data has no video: nothing is left to do.
    """
    stages = [Stage(ImageLesson(model.task, train, val), recipes["image"])]
    if not isinstance(model, TemporalModel) or len(recipes) == 1:
        return stages
    has_video = False
    if init is not None:
        has_images, has_video = what_it_knows(model, init)
        stages = [] if has_images else stages
    try:
        clips = open_clips(data, "train", kind=KIND, num_frames=TRAIN_FRAMES)
        held_out = open_clips(data, "val", kind=KIND, num_frames=VAL_FRAMES)
    except DataError as error:
        if not stages:
            raise
        print(f"only images are taught: {error}")
        return stages
    if data == "street":
        held_out.length = VAL_CLIPS  # type: ignore[attr-defined]
    if clips.has_flow and not has_video:
        stages.append(Stage(FlowLesson(model.task, clips, held_out), recipes["flow"]))
    stages.append(Stage(VideoLesson(model.task, clips, held_out), recipes["video"]))
    return stages


def what_it_knows(model: TemporalModel, path: Path) -> tuple[bool, bool]:
    """Whether a checkpoint has all that key frames need, and all that the others need as well."""
    tensors = read_tensors(path)
    own = model.state_dict()
    has = {key: key in tensors and tensors[key].shape == own[key].shape for key in own}
    images = all(has[key] for key in own if key.split(".")[0] not in model.video_modules)
    return images, images and all(has.values())


def run_folder(out: Path, stages: list[Stage], stage: Stage) -> Path:
    """Where a stage's run lies: in `out` itself where images are all that is taught."""
    is_whole = [s.lesson.name for s in stages] == [ImageLesson.name]
    return out if is_whole else out / stage.lesson.name
