import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from tiny_bundle import CATEGORY_IDS, paint, write_tiny_bundle

import runtime
from runtime.contract.errors import run_script
from runtime.contract.manifest import InputGeometry, Joints
from runtime.poses import Poses
from runtime.run_images import main
from runtime.topdown import TopDown

SCRIPT = Path(__file__).resolve().parents[2] / "runtime" / "run_images.py"
SOURCE_PIXELS = 4.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "b.png"), paint(96, 128, {0: (20, 20, 60, 60)}))
    cv2.imwrite(str(folder / "a.png"), paint(192, 256, {2: (40, 40, 120, 100)}))
    _, data = cv2.imencode(".png", paint(48, 64, {}))
    (folder / "grün.png").write_bytes(data.tobytes())
    return folder


@pytest.fixture
def run(bundle, tmp_path, capsys):
    """Run the script in this process; (status, results or None, stderr)."""

    def call(source, *options, out="results.json"):
        arguments = [str(bundle), str(source), "--backend", "onnxruntime", *options]
        status = run_script(lambda: main([*arguments, "--out", str(tmp_path / out)]))
        path = tmp_path / out
        results = json.loads(path.read_text()) if path.is_file() else None
        return status, results, capsys.readouterr().err

    return call


def test_folder_gives_coco_results_and_a_map_of_ids(run, images, tmp_path):
    status, results, _ = run(images)
    assert status == 0
    assert [(each["image_id"], each["category_id"]) for each in results] == [
        (1, CATEGORY_IDS[2]),
        (2, CATEGORY_IDS[0]),
    ]
    assert results[0]["bbox"] == pytest.approx([40, 40, 80, 60], abs=SOURCE_PIXELS)
    listed = json.loads((tmp_path / "results.images.json").read_text())
    assert [(each["id"], each["file_name"]) for each in listed] == [
        (1, "a.png"),
        (2, "b.png"),
        (3, "grün.png"),
    ]
    assert (listed[0]["width"], listed[0]["height"]) == (256, 192)


def test_image_ids_come_from_the_annotations(run, images, tmp_path):
    named = {"images": [{"id": 77, "file_name": "a.png"}, {"id": 78, "file_name": "gone.png"}]}
    (tmp_path / "val.json").write_text(json.dumps(named))
    status, results, errors = run(images, "--image-ids", str(tmp_path / "val.json"))
    assert status == 0
    assert [each["image_id"] for each in results] == [77]
    assert "2 files are not named" in errors
    assert "1 images of" in errors
    assert not (tmp_path / "results.images.json").exists()


def test_image_ids_are_found_where_annotations_name_the_folder_too(run, images, tmp_path):
    named = {"images": [{"id": 5, "file_name": f"val/{name}.png"} for name in "ab"]}
    named["images"][1]["id"] = 6
    (tmp_path / "val.json").write_text(json.dumps(named))
    _, results, _ = run(images, "--image-ids", str(tmp_path / "val.json"))
    assert [each["image_id"] for each in results] == [5, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no COCO annotation file"),
        ('{"images": [{"id": 1}]}', "is no COCO annotation file"),
        ('{"images": [{"id": 1, "file_name": "x.png"}]}', "names none of the 3 files"),
    ],
    ids=["no JSON", "no names", "another folder's"],
)
def test_annotations_that_do_not_fit_are_refused(run, images, tmp_path, text, message):
    (tmp_path / "val.json").write_text(text)
    status, results, errors = run(images, "--image-ids", str(tmp_path / "val.json"))
    assert (status, results) == (2, None)
    assert message in errors


def test_glob_takes_what_it_matches(run, images):
    status, results, _ = run(images / "[ab].png")
    assert (status, len(results)) == (0, 2)


def test_single_file_is_run(run, images):
    status, results, _ = run(images / "b.png")
    assert (status, len(results)) == (0, 1)


def test_files_that_are_no_images_are_skipped_by_name(run, images):
    (images / "notes.txt").write_text("not an image")
    (images / "empty.jpg").write_bytes(b"")
    status, results, errors = run(images)
    assert (status, len(results)) == (0, 2)
    assert "skipped 2 files that are no images: empty.jpg, notes.txt" in errors


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n half"])
def test_unreadable_image_given_by_name_ends_with_one_line(run, images, tmp_path, content):
    (images / "bad.png").write_bytes(content)
    status, results, errors = run(images / "bad.png")
    assert (status, results) == (2, None)
    assert errors.count("\n") == 1
    assert "bad.png" in errors
    assert [each.name for each in tmp_path.iterdir()] == ["images"]


def test_folder_without_images_ends_with_one_error(run, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    status, results, errors = run(tmp_path)
    assert (status, results) == (2, None)
    assert "none of the 1 files" in errors


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png"])
def test_source_that_is_not_there_is_named(run, tmp_path, source):
    status, results, errors = run(tmp_path / source)
    assert (status, results) == (2, None)
    assert "nowhere" in errors


def test_annotated_images_are_written_beside_the_results(run, images, tmp_path):
    status, _, _ = run(images, "--annotated", str(tmp_path / "drawn"))
    assert status == 0
    assert sorted(each.name for each in (tmp_path / "drawn").iterdir()) == [
        "a.png",
        "b.png",
        "grün.png",
    ]
    drawn, plain = (cv2.imread(str(folder / "a.png")) for folder in (tmp_path / "drawn", images))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()


def test_annotated_images_never_overwrite_the_sources(run, images):
    status, results, errors = run(images, "--annotated", str(images))
    assert (status, results) == (2, None)
    assert "would be overwritten" in errors


def test_out_that_is_a_folder_is_refused(run, images):
    status, _, errors = run(images, out="images")
    assert status == 2
    assert "is a folder" in errors


def test_thresholds_reach_the_graph(run, images):
    _, results, _ = run(images, "--score-threshold", "0.7")
    assert [each["image_id"] for each in results] == [2]


def test_bad_threshold_ends_with_one_line_and_nothing_written(run, images):
    status, results, errors = run(images, "--score-threshold", "-1")
    assert (status, results) == (2, None)
    assert "score_threshold is -1" in errors


def test_script_runs_by_path_from_any_folder(bundle, images, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, bundle, "images", "--out", "out/results.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "3 images, 2 detections" in done.stdout
    assert (tmp_path / "out" / "results.json").is_file()


def test_joints_of_people_are_written_with_their_boxes(run, images, bundle, monkeypatch):
    def load_topdown(detector, pose, **options):
        assert (detector, pose) == (str(bundle), "pose")
        assert options["schedule"] == "key"
        return TopDown(runtime.load(detector, **options), OneJoint())

    class OneJoint:
        """Finds its only joint in the middle of every crop."""

        manifest = SimpleNamespace(
            task="pose_crop",
            classes=("red car",),
            joints=Joints(("nose",), (), (), (0.05,)),
            geometry=InputGeometry(48, 32),
            crop_margin=1.25,
        )

        def batch(self, crops):
            one, box = np.ones(1, np.float32), np.array([[0, 0, 32, 48]], np.float32)
            joint = np.array([[[16, 24, 0.5]]], np.float32)
            return [
                Poses(box, one, np.zeros(1, np.int32), ("red car",), keypoints_xyc=joint,
                      joints=self.manifest.joints)
                for _ in crops
            ]  # fmt: skip

        def close(self):
            pass

    monkeypatch.setattr(runtime, "load_topdown", load_topdown)
    status, results, _ = run(images, "--pose", "pose")
    assert status == 0
    (car,) = results
    assert car["category_id"] == CATEGORY_IDS[2]
    assert car["keypoints"][:2] == pytest.approx([80, 70], abs=SOURCE_PIXELS)


def test_a_bundle_that_finds_no_joints_is_refused(run, images, bundle):
    status, results, message = run(images, "--pose", str(bundle))
    assert status == 2
    assert results is None
    assert "is of task 'detection'; expected 'pose_crop'" in message
