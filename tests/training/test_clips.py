"""Clips of the street and of files: their flow is true, and they are the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_clips import write_video

from training.data.clips import Clip, open_clips
from training.data.sample import DataError
from training.data.street import render_frame
from training.data.street.clips import StreetClip, StreetClips

SIZE_HW = (216, 384)
FAST_PX = 3.0  # of a frame 512 wide, in a frame's time: several pixels
EXPLAINED = 0.5  # of the difference to the earlier frame is left when that is moved by the flow
SAME_THING = 0.97  # share of the seen pixels; outlines fall between pixels


def street(kind: str, *, num_frames: int = 6, **options: object) -> StreetClips:
    return StreetClips("val", kind=kind, num_frames=num_frames, size_hw=SIZE_HW, **options)


def moved(picture: np.ndarray, offsets_xy: np.ndarray, interpolation: int) -> np.ndarray:
    """The earlier frame's picture where the later frame's points lay in it."""
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    maps = columns + offsets_xy[..., 0], rows + offsets_xy[..., 1]
    return cv2.remap(picture, *maps, interpolation)


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_earlier_frame_moved_by_the_flow_is_the_later_one_where_it_is_seen(kind: str):
    shares, things = [], []
    for index in range(4):
        clip = street(kind)[index]
        flow = clip.flow(5, 1)
        before, later = clip.frame(1).image, clip.frame(5).image
        seen = flow.is_seen
        made = moved(before, flow.offsets_xy, cv2.INTER_LINEAR)
        left = np.abs(made.astype(float) - later)[seen].mean()
        shares.append(left / np.abs(before.astype(float) - later)[seen].mean())
        identities = moved(
            clip.identities(1).astype(np.float32), flow.offsets_xy, cv2.INTER_NEAREST
        )
        things.append((identities == clip.identities(5))[seen].mean())
        assert seen.mean() > 0.6
    assert np.mean(shares) < EXPLAINED
    assert min(things) > SAME_THING


def test_fast_clips_move_several_pixels_of_the_network_a_frame_and_plain_ones_fewer():
    speeds = {}
    for kind in ("plain", "fast"):
        flows = [street(kind)[index].flow(3, 2) for index in range(6)]
        lengths = [np.linalg.norm(f.offsets_xy, axis=-1)[f.is_seen].mean() for f in flows]
        speeds[kind] = np.array(lengths) * 512 / SIZE_HW[1]
    assert (speeds["fast"] > FAST_PX).all()
    assert (speeds["plain"] < FAST_PX).all()
    assert (speeds["plain"] > 0.05).all()


def test_mixed_clips_stand_still_and_move_fast_in_turn():
    clip = street("mixed", num_frames=40)[0]
    steps = np.diff(clip.course.times_s), np.diff(clip.course.turns)
    still = (steps[0] == 0) & (steps[1] == 0)
    assert 0.2 < still.mean() < 0.8
    assert 2 <= np.count_nonzero(np.diff(still)) <= 8
    at = int(np.flatnonzero(still)[0])
    assert np.abs(clip.flow(at + 1, at).offsets_xy).max() < 1e-3
    assert np.sign(steps[1][~still]).min() == -1  # to and fro
    assert np.sign(steps[1][~still]).max() == 1


def test_flow_of_a_frame_to_itself_is_zero_and_sees_everything():
    flow = street("fast")[2].flow(3, 3)
    assert np.abs(flow.offsets_xy).max() < 1e-2
    assert flow.is_seen.mean() > 0.999


def test_flow_points_back_to_where_things_were():
    """A camera that turns right moves the picture left: its points lay further right."""
    for index in range(4):
        clip = street("fast")[index]
        turn = clip.course.turns[3] - clip.course.turns[2]
        flow = clip.flow(3, 2)
        assert np.sign(np.median(flow.offsets_xy[flow.is_seen, 0])) == np.sign(turn)


def test_plain_clip_is_the_scene_at_its_own_pace():
    clip = street("plain")[1]
    first = round(clip.course.times_s[0] * 25)
    for place in (0, 4):
        frame = render_frame(1_000_001, first + place, size_hw=SIZE_HW, labels=("masks",))
        assert np.array_equal(clip.frame(place).boxes_xyxy, frame.boxes_xyxy)
        assert np.array_equal(clip.frame(place).masks, frame.masks)
        assert np.array_equal(clip.track_ids(place), frame.track_ids)


@pytest.mark.parametrize("kind", ["plain", "fast", "mixed"])
def test_clip_is_the_same_every_time_and_its_frames_have_ids_of_their_own(kind: str):
    one, other = street(kind)[1], street(kind)[1]
    assert isinstance(one, StreetClip)
    assert isinstance(one, Clip)
    assert np.array_equal(one.frame(4).image, other.frame(4).image)
    assert np.array_equal(one.flow(4, 1).offsets_xy, other.flow(4, 1).offsets_xy)
    ids = [clip.frame(i).image_id for clip in (one, street(kind)[2]) for i in range(2)]
    assert len(set(ids)) == 4


def test_splits_show_scenes_of_their_own():
    assert StreetClips("train")[0].scene.seed != StreetClips("val")[0].scene.seed


@pytest.mark.parametrize(
    ("split", "options", "expected"),
    [
        ("train", {"kind": "slow"}, "plain, fast, mixed"),
        ("dev", {}, "train, val, test"),
        ("train", {"num_frames": 1}, "2 to 1000"),
    ],
)
def test_clips_that_do_not_exist_are_refused_in_one_line(split, options, expected):
    with pytest.raises(DataError, match=expected) as error:
        StreetClips(split, **options)
    assert "\n" not in str(error.value)


def test_video_in_coco_form_comes_as_clips_in_the_order_of_their_frames(tmp_path: Path):
    clips = open_clips(write_video(tmp_path), "train")
    assert [len(clips[i]) for i in range(len(clips))] == [4, 3]
    assert (clips.classes, clips.category_ids, clips.has_flow) == (("square",), (3,), False)
    left = [clips[0].frame(i).boxes_xyxy[0, 0] for i in range(4)]
    assert left == [10, 15, 20, 25]
    assert clips[0].frame(0).masks.sum() == 400
    assert clips[1].track_ids(0).tolist() == [51]
    assert clips[0].flow(1, 0) is None


def test_track_ids_stay_with_their_boxes_when_others_are_dropped(tmp_path: Path):
    path = write_video(tmp_path) / "train.json"
    document = json.loads(path.read_text())
    broken = document["annotations"][0] | {"id": 99, "bbox": [5, 5, 0, 0], "track_id": 1}
    document["annotations"].insert(0, broken)
    path.write_text(json.dumps(document))
    assert open_clips(tmp_path, "train")[0].track_ids(3).tolist() == [50]


def test_images_without_video_are_refused_in_one_line(tmp_path: Path):
    with pytest.raises(DataError, match="video_id.*frame_index"):
        open_clips(write_video(tmp_path, is_video=False), "train")
