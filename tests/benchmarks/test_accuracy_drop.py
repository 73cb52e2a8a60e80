"""The drop of AP between two precisions: its accumulation, its bootstrap, and the script."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from calling import call
from tiny_bundle import write_tiny_bundle

from benchmarks import accuracy_drop
from benchmarks.measure.average_precision import Matches, match, overlap
from benchmarks.measure.bootstrap import bootstrap_drop
from runtime.results import Detections
from training.data.sample import Sample
from training.metrics.detection import GroundTruth, detections_to_coco, score_boxes

CLASSES = ("a", "b", "c")
SAME_AP = 1e-6  # float64 sums in another order


def make_sample(rng: np.random.Generator, number: int, *, crowds: bool) -> Sample:
    """Some objects; some of them crowds."""
    count = int(rng.integers(0, 8))
    corners = rng.uniform(0, 150, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (count, 2))], axis=1)
    return Sample(
        image=np.zeros((200, 240, 3), np.uint8),
        boxes_xyxy=boxes.astype(np.float32),
        classes=rng.integers(0, len(CLASSES) - 1, count),  # no object is of the last class
        is_crowd=(rng.random(count) < 0.25) & crowds,
        image_id=number,
        file_name=f"{number}.png",
    )


def detect(rng: np.random.Generator, sample: Sample, noise: float) -> tuple[np.ndarray, ...]:
    """Objects twice and off by some pixels, and boxes where nothing is."""
    boxes = np.repeat(sample.boxes_xyxy, 2, axis=0)
    boxes = boxes + rng.normal(0, noise, boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    stray = rng.uniform(0, 150, (int(rng.integers(0, 6)), 2))
    boxes = np.concatenate([boxes, np.concatenate([stray, stray + 40], axis=1)])
    classes = np.concatenate([np.repeat(sample.classes, 2), np.zeros(len(stray), np.int64)])
    swapped = rng.random(len(classes)) < 0.1
    classes[swapped] = len(CLASSES) - 1
    return boxes, rng.random(len(boxes)), classes


def make_results(seed: int, count: int, *, noise: float = 4.0, crowds: bool = False):
    rng = np.random.default_rng(seed)
    samples = [make_sample(rng, number, crowds=crowds) for number in range(count)]
    return samples, [detect(rng, sample, noise) for sample in samples]


def tied(found):
    """The same detections with scores of two digits, of which many are equal."""
    return [(boxes, np.round(scores, 2), classes) for boxes, scores, classes in found]


def matches_of(samples, found) -> Matches:
    matches = Matches(len(CLASSES))
    for sample, (boxes, scores, classes) in zip(samples, found, strict=True):
        matches.add(boxes, scores, classes, sample.boxes_xyxy, sample.classes, sample.is_crowd)
    return matches


def coco_ap(samples, found, weights=None) -> dict[str, float]:
    """faster-coco-eval; an image of weight n is there n times, under n ids."""
    truth, results = GroundTruth(CLASSES, (1, 2, 3)), []
    number = 0
    for place, (sample, (boxes, scores, classes)) in enumerate(zip(samples, found, strict=True)):
        for _ in range(1 if weights is None else int(weights[place])):
            sample.image_id = number
            truth.add(sample)
            results += detections_to_coco(number, boxes, scores, classes, (1, 2, 3))
            number += 1
    return score_boxes(truth.as_coco(), results)


@pytest.mark.parametrize("crowds", [False, True], ids=["objects", "crowds"])
@pytest.mark.parametrize("seed", range(4))
def test_ap_with_all_weights_1_is_faster_coco_eval_s(seed, crowds):
    samples, found = make_results(seed, 40, crowds=crowds)
    found = tied(found)
    matches = matches_of(samples, found)
    expected = coco_ap(samples, found)
    assert abs(matches.average_precision() - expected["AP"]) <= SAME_AP
    for name, value in zip(CLASSES, matches.class_precisions(), strict=True):
        assert np.isnan(value) == np.isnan(expected[f"AP/{name}"])
        assert np.isnan(value) or abs(value - expected[f"AP/{name}"]) <= SAME_AP


@pytest.mark.parametrize("seed", range(4))
def test_ap_of_a_draw_is_that_of_the_images_as_often_as_they_were_drawn(seed):
    samples, found = make_results(seed, 30)
    rng = np.random.default_rng(seed)
    weights = np.bincount(rng.integers(30, size=30), minlength=30)
    expected = coco_ap(samples, found, weights)["AP"]
    assert abs(matches_of(samples, found).average_precision(weights) - expected) <= SAME_AP


def test_at_most_100_detections_of_a_class_and_image_count():
    samples, found = make_results(3, 6)
    rng = np.random.default_rng(0)
    many = [(np.tile(b, (40, 1)), rng.random(40 * len(s)), np.tile(c, 40)) for b, s, c in found]
    expected = coco_ap(samples, many)["AP"]
    assert abs(matches_of(samples, many).average_precision() - expected) <= SAME_AP


def test_images_without_objects_or_detections_have_no_ap():
    matches = Matches(2)
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    matches.add(*nothing, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    assert np.isnan(matches.average_precision())


def test_missed_objects_score_0_and_found_ones_1():
    box, label, crowd = np.array([[10.0, 10, 50, 50]]), np.array([0]), np.array([False])
    missed, perfect = Matches(1), Matches(1)
    missed.add(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), box, label, crowd)
    perfect.add(box, np.array([0.9]), label, box, label, crowd)
    assert missed.average_precision() == 0
    assert perfect.average_precision() == pytest.approx(1)


def test_object_goes_to_the_detection_of_the_higher_score():
    box = np.array([[0.0, 0, 100, 100]])
    found = np.array([[0.0, 0, 100, 80], [0.0, 0, 100, 100]])  # by falling score
    whole = np.array([False])
    flags = match(overlap(found, box, whole), whole)
    assert flags[:, 0].tolist() == [1] * 7 + [0] * 3  # IoU 0.8
    assert flags[:, 1].tolist() == [0] * 7 + [1] * 3


def test_crowd_takes_any_number_of_detections_by_the_share_that_lies_in_it():
    crowd = np.array([[0.0, 0, 100, 100]])
    found = np.array([[0.0, 0, 10, 10], [50.0, 50, 60, 60], [200.0, 0, 210, 10]])
    np.testing.assert_allclose(overlap(found, crowd, np.array([True]))[:, 0], [1, 1, 0])
    is_crowd = np.array([True])
    assert match(overlap(found, crowd, is_crowd), is_crowd)[0].tolist() == [-1, -1, 0]


# ------------------------------------------------------------------------------------ the bootstrap


def test_artifact_against_itself_drops_nothing_on_any_draw():
    samples, found = make_results(0, 20)
    matches = matches_of(samples, found)
    drop = bootstrap_drop(matches, matches, resamples=100)
    assert (drop.drop, drop.upper_95, drop.interval_95) == (0, 0, (0, 0))


def test_bounds_are_those_of_resampled_coco_scores():
    samples, fine = make_results(1, 25, noise=2.0)
    _, coarse = make_results(1, 25, noise=6.0)
    reference, candidate = matches_of(samples, fine), matches_of(samples, coarse)
    found = bootstrap_drop(reference, candidate, resamples=30, seed=7)
    rng = np.random.default_rng(7)
    drops = []
    for _ in range(30):
        weights = np.bincount(rng.integers(25, size=25), minlength=25)
        drops.append(
            coco_ap(samples, fine, weights)["AP"] - coco_ap(samples, coarse, weights)["AP"]
        )
    assert found.drop > 0
    assert found.upper_95 == pytest.approx(np.percentile(drops, 95), abs=SAME_AP)
    assert found.interval_95 == pytest.approx(np.percentile(drops, (2.5, 97.5)), abs=SAME_AP)
    assert found.standard_error == pytest.approx(np.std(drops, ddof=1), abs=SAME_AP)


def test_more_images_narrow_the_interval():
    widths = []
    for count in (20, 320):
        samples, fine = make_results(2, count, noise=2.0)
        _, coarse = make_results(2, count, noise=3.0)
        drop = bootstrap_drop(matches_of(samples, fine), matches_of(samples, coarse), resamples=200)
        widths.append(drop.interval_95[1] - drop.interval_95[0])
    assert widths[1] < 0.5 * widths[0]  # by 4, in the mean


def test_seed_decides_on_the_draws():
    samples, fine = make_results(1, 10, noise=2.0)
    _, coarse = make_results(1, 10, noise=6.0)
    pair = matches_of(samples, fine), matches_of(samples, coarse)
    first, again, other = (bootstrap_drop(*pair, resamples=100, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_results_of_other_images_are_refused():
    (samples, found), (more, others) = make_results(0, 4), make_results(0, 5)
    with pytest.raises(ValueError, match="results of 4 and 5 images; expected the same ones"):
        bootstrap_drop(matches_of(samples, found), matches_of(more, others))


def test_images_without_objects_are_refused():
    matches = Matches(1)
    matches.add(*(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)) * 1, np.zeros((0, 4)),
                np.zeros(0, int), np.zeros(0, bool))  # fmt: skip
    with pytest.raises(ValueError, match="no object on 1 images"):
        bootstrap_drop(matches, matches)


# --------------------------------------------------------------------------------------- the script


class FakePredictor:
    """Finds the objects of the discs, off by as many pixels as its precision costs."""

    device, backend = "CPU", "fake"

    def __init__(self, precision: str, manifest: object, truth: dict[bytes, Sample]) -> None:
        self.precision, self.manifest, self._truth = precision, manifest, truth

    def __enter__(self) -> FakePredictor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, frame: np.ndarray, score_threshold: float) -> Detections:
        assert score_threshold <= 0.001
        sample = self._truth[frame.tobytes()]
        shift = {"fp32": 0.0, "int8": 3.0}[self.precision]
        count = len(sample.classes)
        return Detections(
            (sample.boxes_xyxy + shift).astype(np.float32), np.full(count, 0.9, np.float32),
            sample.classes.astype(np.int32), self.manifest.classes,
        )  # fmt: skip


@pytest.fixture
def measure(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the script on the discs' val split, with predictors that know the truth."""
    import dataclasses

    from runtime.contract.bundle import Bundle
    from training.data import each_once, open_data

    source = open_data(discs, "val")
    truth = {sample.image.tobytes(): sample for sample in each_once(source)}
    bundle = write_tiny_bundle(tmp_path / "tiny")
    manifest = dataclasses.replace(Bundle.open(bundle).manifest, classes=source.classes)
    monkeypatch.setattr(
        accuracy_drop, "_load", lambda args, name: FakePredictor(name, manifest, truth)
    )

    def run(*more: object):
        given = ("--data", discs, "--split", "val", "--resamples", 100)
        return call("benchmarks.accuracy_drop", bundle, *given, *more)

    return run


def test_script_writes_a_record_of_what_it_measured(measure, tmp_path):
    out = tmp_path / "record.json"
    done = measure("--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["AP"]["fp32"] == pytest.approx(1)
    assert record["drop"] == pytest.approx(1 - record["AP"]["int8"])
    assert record["interval_95"][0] <= record["drop"] <= record["interval_95"][1]
    assert record["drop"] > 0.1
    assert record["data"]["images"] == 4
    assert "accuracy_drop.py" in record["command"]
    assert "--resamples 100" in record["command"]
    assert {*record["class_AP"]["int8"]} == {"pink", "green", "blue"}
    assert record["bundles"]["int8"]["precision"] == "int8"


@pytest.mark.parametrize(("limit", "status"), [(0.0001, 1), (1.0, 0)], ids=["exceeded", "met"])
def test_verdict_is_on_the_upper_bound(limit, status, measure):
    done = measure("--max-drop", limit)
    assert done.returncode == status
    assert ("exceeded" if status else "met") in done.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--precision", "fp32"), "are both fp32"),
        (("--images", 0), "--images 0 is too few"),
        (("--resamples", 5), "--resamples 5 is too few"),
        (("--data", "street"), "street has the classes person"),
    ],
    ids=["same", "images", "resamples", "classes"],
)
def test_unusable_question_is_refused_in_one_line(given, message, measure):
    done = measure(*given)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
