"""The search from end to end: a bundle with one layer that int8 ruins, and labels of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from calling import Done, call
from planting import PASSED, REFUSED, artifacts, plant, set_value, value_of
from tiny_models import CATEGORY_IDS, CLASSES, SIZE_HW, frames_of

import export.precision.search.measuring
from export.graph.types_audit import audit_types
from export.precision.mixed import find_int8
from export.precision.search.measuring import Measuring
from export.precision.search.scoring import LabelledFrames
from runtime.contract.bundle import VERIFY_NAME, Bundle
from runtime.sessions import open_session

BLOCK = "model.backbone.layer2.1.conv1"
NEXT = "model.backbone.layer2.1.conv2"
OUTLIER = 1e4
SPLITS = {"train": (4, 1), "val": (8, 2), "test": (6, 3)}  # frames, seed
OBJECTS = 8  # a frame
BUDGET = 0.25  # random weights lose more to rounding than trained ones
STOPPED = 130


def enlarge_a_channel(graph: onnx.GraphProto) -> None:
    """One channel inside a residual block becomes OUTLIER times larger, and nothing else changes.

    The block's second product takes it back; ReLU between the two lets a factor through. 255
    levels over that channel's range leave the others none.
    """
    weight, bias = f"{BLOCK}.weight", f"{BLOCK}.weight_bias"
    for name in (weight, bias):
        value = value_of(graph, name)
        value[0] *= OUTLIER
        set_value(graph, name, value)
    after = value_of(graph, f"{NEXT}.weight")
    after[:, 0] /= OUTLIER
    set_value(graph, f"{NEXT}.weight", after)


@pytest.fixture(scope="module")
def own_labels(written_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder whose objects are what the bundle finds in float32: its AP there is 1."""
    root = tmp_path_factory.mktemp("labelled")
    session = open_session(Bundle.open(written_bundle), "onnxruntime", "fp32", device="cpu")
    for split, (count, seed) in SPLITS.items():
        (root / split).mkdir()
        images, annotations = [], []
        for number, frame in enumerate(frames_of(count, seed=seed).numpy()):
            limits = {
                "score_threshold": np.full((1, len(CLASSES)), 0.02, np.float32),
                "iou_threshold": np.full(1, 0.5, np.float32),
            }
            found = session.run({"image": frame[None], **limits})
            boxes = found["boxes_xyxy"][0, :OBJECTS]
            for box, kind in zip(boxes, found["classes"][0, :OBJECTS], strict=True):
                sides = [float(v) for v in (*box[:2], *(box[2:] - box[:2]))]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "iscrowd": 0,
                    "category_id": CATEGORY_IDS[kind], "bbox": sides, "area": sides[2] * sides[3],
                })  # fmt: skip
            cv2.imwrite(str(root / split / f"{number}.png"), frame)
            height, width = SIZE_HW
            images.append(
                {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
            )
        categories = [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASSES, strict=True)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(document))
    session.close()
    return root


@pytest.fixture(scope="module")
def planted(written_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(written_bundle, tmp_path_factory.mktemp("planted") / "tiny"))
    plant(folder, enlarge_a_channel)
    return folder


def search(bundle: Path, data: Path, *more: object) -> Done:
    options = ("--data", data, "--images", 4, "--proof-data", data, "--verify", "none")
    return call("export.quantize", bundle, *options, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def read_search(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / VERIFY_NAME).read_text())["search"]


def floats_of(bundle: Path) -> list[str]:
    return [row["name"] for row in read_search(bundle)["groups"] if row["precision"] == "float"]


@pytest.fixture(scope="module")
def searched(
    planted: Path, own_labels: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Done]:
    """A bundle after the search, its state beside it."""
    folder = Path(shutil.copytree(planted, tmp_path_factory.mktemp("searched") / "tiny"))
    done = search(folder, own_labels, "--ap-budget", BUDGET)
    assert done.returncode == PASSED, done.stderr
    return folder, done


@pytest.fixture
def again(searched: tuple[Path, Done], planted: Path, tmp_path: Path) -> Path:
    """The bundle as before the search, with the state that the search left."""
    folder = Path(shutil.copytree(planted, tmp_path / "tiny"))
    shutil.copy(searched[0].with_name("tiny.search.json"), tmp_path)
    return folder


@pytest.fixture
def fresh(planted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted, tmp_path / "tiny"))


def test_search_floats_exactly_the_block_that_int8_ruins(searched):
    folder, done = searched
    document = read_search(folder)
    assert floats_of(folder) == [BLOCK]
    drops = {row["num_float"]: row["drop"] for row in document["trials"]}
    assert drops[0] > 2 * BUDGET
    assert drops[1] <= BUDGET
    assert document["is_complete"]
    assert "1 of " in done.stdout


def test_files_are_what_the_search_chose(searched):
    bundle = Bundle.open(searched[0])
    document = read_search(searched[0])
    chosen = {name for row in document["groups"] if row["precision"] == "int8"
              for name in row["products"]}  # fmt: skip
    assert bundle.manifest.precisions == ("fp32", "int8", "mixed")
    for kind in ("portable", "plugin", "cpu"):
        model = onnx.load(bundle.file("model", "mixed", kind))
        assert find_int8(model) == chosen
        assert audit_types(model, "mixed").verdict == "pass"


def test_record_says_on_what_it_was_calibrated_searched_and_reported(searched, own_labels):
    document = read_search(searched[0])
    assert document["calibrated_on"]["data"] == str(own_labels)
    assert document["searched_on"]["split"] == "val"
    assert document["searched_on"]["images"] == SPLITS["val"][0]
    assert document["reported_on"]["split"] == "test"
    assert {*document["reported_on"]["scores"]} == {"float", "int8", "mixed"}
    reported = document["reported_on"]["scores"]
    assert reported["float"]["AP"] > reported["mixed"]["AP"] > reported["int8"]["AP"]
    assert document["cost"] == "macs"
    assert all(value > 0 for value in document["latency_ms"].values())


def test_picture_of_the_search_lies_in_the_bundle(searched):
    picture = cv2.imread(str(searched[0] / "search.mixed.png"))
    assert picture.shape[1] > 1000
    assert picture.std() > 10


def test_another_budget_is_searched_without_measuring_again(again, own_labels, monkeypatch):
    def fail(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(LabelledFrames, "score", fail)
    monkeypatch.setattr(export.precision.search.measuring, "AsWritten", fail)
    done = search(again, own_labels, "--ap-budget", 1)
    assert done.returncode == PASSED, done.stderr
    assert "measurements taken from" in done.stdout
    assert "int8 throughout is within the budget" in done.stdout
    assert floats_of(again) == []


def test_int8_made_anew_takes_mixed_away(searched, tmp_path):
    folder = Path(shutil.copytree(searched[0], tmp_path / "tiny"))
    stored = shutil.copy2(folder / "calibration.json", tmp_path / "stored.json")
    done = call("export.quantize", folder, "--calibration", stored, "--verify", "none")
    assert done.returncode == PASSED, done.stderr
    assert "mixed is gone" in done.stdout
    assert Bundle.open(folder).manifest.precisions == ("fp32", "int8")
    assert [path.name for path in folder.iterdir() if "mixed" in path.name] == []


@pytest.mark.slow
def test_budget_of_nothing_is_kept_on_the_frames_of_the_search(again, own_labels):
    done = search(again, own_labels, "--ap-budget", 0)
    assert done.returncode == PASSED, done.stderr
    document = read_search(again)
    num_float = len(floats_of(again))
    (drop,) = [row["drop"] for row in document["trials"] if row["num_float"] == num_float]
    assert drop <= 1e-6
    assert BLOCK in floats_of(again)


def test_no_time_leaves_everything_in_half_and_says_so(fresh, own_labels, tmp_path):
    data = Path(shutil.copytree(own_labels, tmp_path / "data"))
    shutil.rmtree(data / "test")
    done = search(fresh, data, "--ap-budget", BUDGET, "--search-minutes", 1e-9)
    assert done.returncode == PASSED, done.stderr
    assert "time was up" in done.stdout
    document = read_search(fresh)
    assert not document["is_complete"]
    assert {row["precision"] for row in document["groups"]} == {"float"}
    assert "no test split" in document["reported_on"]["note"]
    graph = onnx.load(Bundle.open(fresh).file("model", "mixed")).graph
    assert not [node for node in graph.node if node.op_type == "QuantizeLinear"]


def test_stopped_search_keeps_what_was_measured_and_leaves_the_bundle(
    fresh, own_labels, monkeypatch, tmp_path
):
    before = contents(fresh)
    measure = Measuring.error
    seen: list[str] = []

    def stop_at_the_third(self: Measuring, group: str) -> float:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(group)
        return measure(self, group)

    monkeypatch.setattr(Measuring, "error", stop_at_the_third)
    state = tmp_path / "mine.json"
    done = search(fresh, own_labels, "--ap-budget", BUDGET, "--search-state", state)
    assert done.returncode == STOPPED
    assert "search again" in done.stdout
    assert contents(fresh) == before
    measured = json.loads(state.read_text())["measured"]
    assert len([name for name in measured if name.startswith("scores")]) == 2
    assert [name for name in measured if name.startswith("error")] == [f"error {n}" for n in seen]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ap-budget", -0.1), "is no share"),
        (("--ap-budget", 2), "is no share"),
        (("--ap-budget", 0.1, "--search-images", 0), "too few"),
        (("--ap-budget", 0.1, "--search-minutes", 0), "is no time"),
        (("--search-minutes", 5), "goes with --ap-budget"),
    ],
    ids=["negative", "above one", "no frames", "no minutes", "no budget"],
)
def test_senseless_search_is_refused_and_nothing_written(fresh, own_labels, options, said):
    before = contents(fresh)
    done = search(fresh, own_labels, *options)
    assert done.returncode == REFUSED
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(fresh) == before


def test_pictures_without_labels_are_refused(fresh, own_labels, tmp_path):
    shutil.copytree(own_labels / "train", tmp_path / "pictures")
    (tmp_path / "pictures" / "_annotations.coco.json").unlink()
    done = search(fresh, tmp_path / "pictures", "--ap-budget", 0.1)
    assert done.returncode == REFUSED
    assert "not a data set" in done.stderr


def test_new_proof_keeps_the_search_and_judges_mixed(
    mixed_to_change, one_backend, tiny_checkpoint, discs
):
    (mixed_to_change / VERIFY_NAME).write_text(
        json.dumps({"schema": 1, "artifacts": [], "search": {"budget": 0.25}})
    )
    options = ("--checkpoint", tiny_checkpoint, "--data", discs, "--images", 4)
    done = call("export.verify", mixed_to_change, *options)
    rows = {row["precision"]: row for row in artifacts(mixed_to_change)}
    assert {*rows} == {"fp32", "int8", "mixed"}
    assert read_search(mixed_to_change) == {"budget": 0.25}
    assert rows["mixed"]["verdict"] == "pass", done.stdout
