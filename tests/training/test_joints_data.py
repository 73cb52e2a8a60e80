"""Joints of data sets: COCO with people among others, WIDER FACE, faces and crops of the street."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_samples import make_sample

from runtime.contract.manifest import InputGeometry
from runtime.crops import Crop
from runtime.poses import FACE_JOINTS
from training.data import each_once, open_data
from training.data.augment import Augment
from training.data.crop_geometry import augmented_crop, crop_affine, cropped, cut
from training.data.crops import MIN_SIDE_PX, SLOTS, PersonCrops, is_usable
from training.data.geometry import horizontal_flip, map_keypoints
from training.data.jointed import Jointed, joints_of
from training.data.joints import FACE_LANDMARKS, PERSON_JOINTS, JointSet, find_flip_pairs
from training.data.records import RecordSource
from training.data.sample import DataError, Sample
from training.data.street import JOINT_NAMES
from training.tasks import keypoints, labels_of, main_score_of

SIZE_HW = (64, 48)
PAIRS = ((0, 1),)


def write_image(path: Path, hw: tuple[int, int] = (120, 160)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    cv2.imwrite(str(path), rng.integers(0, 255, (*hw, 3), np.uint8))


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """Two images with a dog, people with and without joints, and a crowd; two kinds of files."""
    categories = [
        {"id": 18, "name": "dog"},
        {
            "id": 1,
            "name": "person",
            "keypoints": ["nose", "left_wrist", "right_wrist", "tail"],
            "skeleton": [[1, 2], [1, 3]],
        },
    ]
    images = [{"id": n, "file_name": f"{n}.png", "width": 160, "height": 120} for n in (3, 9)]

    def entry(number: int, image: int, category: int, box: list, joints: list, crowd: int = 0):
        return {
            "id": number, "image_id": image, "category_id": category, "bbox": box,
            "area": box[2] * box[3], "iscrowd": crowd, "keypoints": joints,
        }  # fmt: skip

    joints = [20, 30, 2, 40, 50, 1, 99, 99, 0, 30, 60, 2]
    annotations = [
        entry(1, 3, 18, [0, 0, 50, 50], []),
        entry(2, 3, 1, [10, 20, 40, 90], joints),
        entry(3, 3, 1, [60, 20, 60, 90], [0] * 12),
        entry(4, 9, 1, [0, 0, 100, 60], [0] * 12, crowd=1),
        entry(5, 9, 1, [5, 5, 50, 70], joints),
        entry(6, 9, 1, [5, 5, 20, 30], joints),
    ]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations").mkdir()
    for name in ("train2017", "val2017"):
        for image in images:
            write_image(tmp_path / name / image["file_name"])
        text = json.dumps(document)
        (tmp_path / "annotations" / f"person_keypoints_{name}.json").write_text(text)
        bare = {**document, "categories": [{"id": c["id"], "name": c["name"]} for c in categories]}
        (tmp_path / "annotations" / f"instances_{name}.json").write_text(json.dumps(bare))
    return tmp_path


# ------------------------------------------------------------------------------------------- sets


def test_joint_sets_are_whole():
    assert PERSON_JOINTS.joints == JOINT_NAMES
    assert FACE_LANDMARKS.joints == FACE_JOINTS
    for each in (PERSON_JOINTS, FACE_LANDMARKS):
        count = len(each.joints)
        assert len(each.sigmas) == count
        assert {place for pair in each.skeleton for place in pair} == {*range(count)}
        assert find_flip_pairs(each.joints) in (
            each.flip_pairs,
            tuple((b, a) for a, b in each.flip_pairs),
        )


def test_set_of_names_knows_pairs_and_coco_s_constants():
    found = JointSet.of_names(("tail", "left_wrist", "right_wrist", "nose"), [[0, 3]])
    assert found.flip_pairs == ((1, 2),)
    assert found.sigmas == (0.05, 0.062, 0.062, 0.026)
    assert found.skeleton == ((0, 3),)


def test_task_says_whether_people_or_faces_are_meant():
    assert labels_of("keypoints", FACE_LANDMARKS.joints) == ("landmarks",)
    assert labels_of("keypoints", PERSON_JOINTS.joints) == ("keypoints",)
    assert labels_of("detection") == ()
    assert main_score_of("keypoints", FACE_LANDMARKS.joints) == "AP50"
    assert main_score_of("keypoints", PERSON_JOINTS.joints) == "OKS_AP"
    assert main_score_of("pose_crop", PERSON_JOINTS.joints) == "PCK@0.2"


# ------------------------------------------------------------------------------------------- COCO


def test_coco_with_both_files_is_opened_with_the_joints_where_they_are_wanted(coco_root: Path):
    assert not open_data(coco_root, "val").joints
    source = Jointed(open_data(coco_root, "val", ("keypoints",)))
    assert source.classes == ("person",)
    assert source.category_ids == (1,)
    assert source.joints == ("nose", "left_wrist", "right_wrist", "tail")
    assert source.skeleton == ((0, 1), (0, 2))
    assert source.flip_pairs == ((1, 2),)
    assert source.sigmas == (0.026, 0.062, 0.062, 0.05)


def test_jointed_source_drops_other_classes_and_keeps_what_coco_says_of_joints(coco_root: Path):
    first, second = list(each_once(Jointed(open_data(coco_root, "val", ("keypoints",)))))
    assert first.classes.tolist() == [0, 0]
    np.testing.assert_allclose(
        first.keypoints_xyv[0], [[20, 30, 2], [40, 50, 1], [0, 0, 0], [30, 60, 2]]
    )
    assert not first.keypoints_xyv[1].any()
    assert second.is_crowd.tolist() == [True, False, False]
    _, targets = keypoints.collate([first, second])
    assert targets.keypoints.shape == (2, 3, 4, 3)
    assert not targets.keypoints[0, 2].any()  # padding
    assert torch.equal(targets.to(torch.device("cpu")).keypoints, targets.keypoints)


def test_yolo_s_mirror_order_becomes_pairs(tmp_path: Path):
    yaml = "names: [cat]\nkpt_shape: [3, 2]\nflip_idx: [0, 2, 1]\ntrain: images\nval: images\n"
    (tmp_path / "data.yaml").write_text(yaml)
    write_image(tmp_path / "images" / "1.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 0.4 0.4 0.5 0.5 0.4 0.4 0 0\n")
    source = Jointed(open_data(tmp_path, "val", ("keypoints",)))
    assert source.flip_pairs == ((1, 2),)
    np.testing.assert_allclose(source[0].keypoints_xyv[0], [[80, 60, 2], [64, 48, 2], [0, 0, 0]])
    (tmp_path / "data.yaml").write_text(yaml.replace("[0, 2, 1]", "[0, 2, 2]"))
    with pytest.raises(DataError, match="each once"):
        open_data(tmp_path, "val")


def test_data_without_joints_is_refused(coco_root: Path):
    for name in ("train2017", "val2017"):
        (coco_root / "annotations" / f"person_keypoints_{name}.json").unlink()
    with pytest.raises(DataError, match="has no keypoints; expected"):
        open_data(coco_root, "val", ("keypoints",))
    with pytest.raises(DataError, match="has no joints; expected"):
        joints_of(open_data(coco_root, "val"))


def test_flip_swaps_left_and_right():
    sample = make_sample()
    flipped = horizontal_flip(sample, PAIRS)
    width = sample.image_hw[1]
    for row in range(3):
        left, right, absent = sample.keypoints_xyv[row]
        np.testing.assert_allclose(flipped.keypoints_xyv[row, 0], [width - right[0], *right[1:]])
        np.testing.assert_allclose(flipped.keypoints_xyv[row, 1], [width - left[0], *left[1:]])
        assert not absent.any()
        assert not flipped.keypoints_xyv[row, 2].any()
    again = horizontal_flip(flipped, PAIRS)
    np.testing.assert_allclose(again.keypoints_xyv, sample.keypoints_xyv, atol=1e-4)


# ------------------------------------------------------------------------------------------ WIDER

LABELLED = "10 20 30 40 15 30 0.0 30 30 1.0 22 40 0.0 -1 -1 -1 28 50 0.0 0.8"


@pytest.fixture
def wider_root(tmp_path: Path) -> Path:
    rows = f"# a/1.jpg\n{LABELLED}\n50 50 20 20 {'-1 ' * 15}0.5\n# a/2.jpg\n60 10 20 30\nbroken 1\n"
    for split in ("train", "val"):
        for name in ("1", "2"):
            write_image(tmp_path / split / "images" / "a" / f"{name}.jpg")
        text = rows.replace("broken 1", "1 2 3")
        (tmp_path / split / "label.txt").write_text(text)
    return tmp_path


def test_wider_face_with_landmarks_is_read(wider_root: Path):
    source = open_data(wider_root, "train", ("landmarks",))
    assert isinstance(source, RecordSource)
    assert source.classes == ("face",)
    assert source.joints == FACE_LANDMARKS.joints
    assert source.defects.counts == {"malformed line": 1}
    first, second = source[0], source[1]
    np.testing.assert_allclose(first.boxes_xyxy, [[10, 20, 40, 60], [50, 50, 70, 70]])
    expected = [[15, 30, 2], [30, 30, 1], [22, 40, 2], [0, 0, 0], [28, 50, 2]]
    np.testing.assert_allclose(first.keypoints_xyv[0], expected)
    assert not first.keypoints_xyv[1].any()
    assert not second.keypoints_xyv.any()


def test_wider_face_s_own_lists_are_read(tmp_path: Path):
    lists = tmp_path / "wider_face_split"
    lists.mkdir()
    text = "a/1.jpg\n2\n10 20 30 40 0 0 0 0 0 0\n50 50 20 20 0 0 0 1 0 0\na/2.jpg\n0\n" + "0 " * 10
    (lists / "wider_face_val_bbx_gt.txt").write_text(text + "\n")
    for name in ("1", "2"):
        write_image(tmp_path / "WIDER_val" / "images" / "a" / f"{name}.jpg")
    source = open_data(tmp_path, "val")
    assert source[0].is_crowd.tolist() == [False, True]
    assert len(source[1]) == 0
    with pytest.raises(DataError, match="no split 'train'"):
        open_data(tmp_path, "train")


def test_wider_list_without_an_image_s_name_is_refused(tmp_path: Path):
    (tmp_path / "val" / "images").mkdir(parents=True)
    (tmp_path / "val" / "label.txt").write_text("1 2 3 4\n")
    with pytest.raises(DataError, match="expected the name of an image first"):
        open_data(tmp_path, "val")


# ----------------------------------------------------------------------------------------- street


def test_street_s_faces_have_landmarks_inside_their_boxes():
    source = open_data("street", "val", ("landmarks",))
    assert source.classes == ("face",)
    samples = [source[place] for place in (0, 1, 2)]
    kept = [(s, row) for s in samples for row in np.flatnonzero(~s.is_crowd)]
    assert kept
    for sample, row in kept:
        x1, y1, x2, y2 = sample.boxes_xyxy[row]
        assert y2 - y1 >= 8
        slack = 0.15 * (x2 - x1)  # a nose in profile stands out
        seen = sample.keypoints_xyv[row][sample.keypoints_xyv[row, :, 2] > 0]
        assert (seen[:, 0] >= x1 - slack).all()
        assert (seen[:, 0] <= x2 + slack).all()
        assert ((seen[:, 1] >= y1) & (seen[:, 1] <= y2)).all()
        eyes, mouth = sample.keypoints_xyv[row, :2], sample.keypoints_xyv[row, 3:]
        if (eyes[:, 2] > 0).all() and (mouth[:, 2] > 0).all():
            assert eyes[:, 1].max() < mouth[:, 1].min()


def test_street_s_joints_keep_the_order_that_they_had():
    assert JOINT_NAMES[:3] == ("nose", "left_eye", "right_eye")
    source = Jointed(open_data("street", "val", ("keypoints",)))
    assert source.classes == ("person",)
    assert source.sigmas == PERSON_JOINTS.sigmas
    assert set(source[0].classes.tolist()) <= {0}


# ------------------------------------------------------------------------------------------ crops


class OneFrame:
    """A source of a drawn frame with one person large enough, and one that is not."""

    classes, category_ids = ("person",), (1,)
    joints = ("left", "right", "top")
    jointed = (0,)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        sample = make_sample((160, 260))
        sample.classes[:] = 0
        sample.image_id = index
        sample.boxes_xyxy[0] = (40, 20, 100, 100)
        sample.boxes_xyxy[1, 2:] = sample.boxes_xyxy[1, :2] + 20
        sample.is_crowd[2] = True
        return sample


BOXES = [(40, 20, 100, 100), (-20.5, 3, 200, 40), (10, 10, 10, 10), (0, 0, 260, 160)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("margin", [1.0, 1.25])
def test_crop_of_training_is_the_runtime_s_to_the_pixel(box: tuple, margin: float):
    image = make_sample((160, 260)).image
    matrix = crop_affine(np.float32(box), SIZE_HW, margin)
    crop = Crop.around(np.float32(box), (160, 260), InputGeometry(*SIZE_HW), margin)
    np.testing.assert_array_equal(cut(image, matrix, SIZE_HW), crop.apply(image))
    out = np.empty((*SIZE_HW, 3), np.uint8)
    assert crop.apply(image, out) is out
    np.testing.assert_array_equal(out, crop.apply(image))
    points = np.random.default_rng(0).uniform(0, 60, (5, 2))
    joints = np.column_stack([points, np.full(5, 2.0)])[None]
    back = crop.points_to_source(map_keypoints(joints, matrix)[0, :, :2])
    np.testing.assert_allclose(back, points, atol=1e-3)
    np.testing.assert_allclose(
        crop.to_network(points), map_keypoints(joints, matrix)[0, :, :2], atol=1e-3
    )


@pytest.mark.parametrize("box", BOXES[:2])
def test_crop_holds_the_box_in_its_middle_and_distorts_nothing(box: tuple):
    matrix = crop_affine(np.float32(box), SIZE_HW, 1.25)
    assert matrix[0, 0] == matrix[1, 1]
    corners = np.float64(box).reshape(2, 2) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(corners.mean(axis=0), [SIZE_HW[1] / 2, SIZE_HW[0] / 2])
    shares = (corners[1] - corners[0]) / (SIZE_HW[1], SIZE_HW[0])
    assert shares.max() == pytest.approx(1 / 1.25)


def test_crop_of_a_box_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="expected four finite numbers"):
        Crop.around(np.float32([0, 0, np.nan, 1]), (160, 260), InputGeometry(*SIZE_HW), 1.25)
    with pytest.raises(ValueError, match="Make crops for the new size"):
        Crop.around(np.float32(BOXES[0]), (160, 260), InputGeometry(*SIZE_HW), 1.25).apply(
            np.zeros((10, 10, 3), np.uint8)
        )


def test_people_become_samples_once_each():
    source = Jointed(OneFrame())
    assert is_usable(source[0]).tolist() == [True, False, False]
    crops = PersonCrops(source, SIZE_HW, 1.25)
    assert len(crops) == 2 * SLOTS
    samples = list(each_once(crops))
    assert len(samples) == 2
    for sample in samples:
        assert sample.image_hw == SIZE_HW
        assert len(sample) == 1
        sides = sample.boxes_xyxy[0, 2:] - sample.boxes_xyxy[0, :2]
        assert (sides / (SIZE_HW[1], SIZE_HW[0])).max() == pytest.approx(0.8, abs=0.01)


def test_people_of_files_are_counted_before_an_image_is_read(coco_root: Path):
    crops = PersonCrops(Jointed(open_data(coco_root, "val", ("keypoints",))), SIZE_HW, 1.25)
    assert len(crops) == 2  # one of each image: the others have no joints, are a crowd, or small
    ids = [crops[place].image_id for place in range(2)]
    assert ids == [3000, 9001]
    sides = [0, 20, MIN_SIDE_PX]
    assert max(sides) == MIN_SIDE_PX


def test_joints_stay_on_the_person_through_every_crop():
    """The drawn joints lie on the blob of their person: colour tells."""
    source = Jointed(OneFrame())
    train = PersonCrops(source, SIZE_HW, 1.25, context=1.6)
    augment = Augment(flip=0.5, hsv=(0, 0, 0), blur=0, noise=0, flip_pairs=PAIRS)
    sample = train[0]
    assert sample.image_hw[0] > SIZE_HW[0]
    flipped = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        made = train.augmented(sample, None, SIZE_HW, augment, rng)
        assert made.image_hw == SIZE_HW
        left, right, absent = made.keypoints_xyv[0]
        assert not absent.any()
        for x, y, v in (left, right):
            if v:
                blue, green, red = made.image[min(int(y), 63), min(int(x), 47)].astype(int)
                assert red > 90
                assert max(blue, green) < 120
        if left[2] and right[2]:
            flipped += left[0] > right[0]
    # The joint called left stays on the left in a mirror too, but for crops that are turned.
    assert flipped == 0


def test_calm_augmentation_is_the_plain_crop():
    sample = Jointed(OneFrame())[0]
    one = cropped(sample, 0, np.array([[1.0, 0, 0], [0, 1.0, 0]]), sample.image_hw)
    made = augmented_crop(one, SIZE_HW, 1.25, Augment.none(), np.random.default_rng(0))
    plain = cropped(one, 0, crop_affine(one.boxes_xyxy[0], SIZE_HW, 1.25), SIZE_HW)
    np.testing.assert_array_equal(made.image, plain.image)
    np.testing.assert_allclose(made.keypoints_xyv, plain.keypoints_xyv, atol=1e-4)
