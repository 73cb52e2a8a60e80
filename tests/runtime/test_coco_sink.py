from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pipeline_fakes import picture, results_of

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks import BufferedSink, FrameResult
from runtime.pipeline.sinks.coco import CocoSink
from runtime.pipeline.sources import Frame
from runtime.results import Detections

ROOT = Path(__file__).resolve().parents[2]
CATEGORY_IDS = (1, 18, 44)


def found(num_boxes: int, seed: int) -> Detections:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 30, (num_boxes, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 15, (num_boxes, 2))], axis=1)
    return Detections(
        boxes.astype(np.float32),
        np.sort(rng.random(num_boxes).astype(np.float32))[::-1],
        rng.integers(0, 3, num_boxes).astype(np.int32),
        ("person", "dog", "bottle"),
    )


def results(counts, source="street.mp4"):
    for index, num_boxes in enumerate(counts):
        frame = Frame(picture(index), index, index / 25, 0.0, 0.1, source)
        yield FrameResult(frame, found(num_boxes, index), age_ms=1.0)


def write(path, counts):
    sink = CocoSink(path, CATEGORY_IDS)
    for result in results(counts):
        sink.write(result)
    sink.close()
    return json.loads(path.read_text())


def test_file_is_what_the_results_give(tmp_path):
    counts = (3, 0, 2)
    entries = write(tmp_path / "a.json", counts)
    expected = [
        entry
        for image_id, result in enumerate(results(counts), start=1)
        for entry in result.results.to_coco(image_id, CATEGORY_IDS)
    ]
    assert entries == expected
    assert len(entries) == 5


def test_file_is_read_by_cocos_own_evaluation(tmp_path):
    """The entries as their own truth: every box is found, so AP is 1."""
    from faster_coco_eval import COCO, COCOeval_faster

    entries = write(tmp_path / "a.json", (3, 0, 2))
    images = json.loads((tmp_path / "a.images.json").read_text())
    truth = {
        "images": images,
        "categories": [{"id": each, "name": str(each)} for each in CATEGORY_IDS],
        "annotations": [
            {**entry, "id": number, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
            for number, entry in enumerate(entries, start=1)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    coco = COCO(str(tmp_path / "truth.json"))
    scores = COCOeval_faster(coco, coco.loadRes(str(tmp_path / "a.json")), "bbox")
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    assert scores.stats[0] == pytest.approx(1.0)


def test_images_say_which_frame_each_is(tmp_path):
    write(tmp_path / "a.json", (1, 1))
    assert json.loads((tmp_path / "a.images.json").read_text())[1] == {
        "id": 2,
        "file_name": "street.mp4#1",
        "width": 64,
        "height": 48,
        "source": "street.mp4",
        "frame": 1,
        "time_s": 0.04,
    }


def test_shape_is_known_behind_a_buffer(tmp_path):
    sink = BufferedSink(CocoSink(tmp_path / "a.json", CATEGORY_IDS), keeps_all=True)
    for result in results((1,)):
        sink.write(result)
    sink.close()
    assert json.loads((tmp_path / "a.images.json").read_text())[0]["width"] == 64


@pytest.mark.parametrize("counts", [(), (0, 0)], ids=["no-frame", "no-object"])
def test_nothing_found_is_an_empty_list(tmp_path, counts):
    assert write(tmp_path / "new" / "a.json", counts) == []


def test_file_appears_when_it_is_closed_and_not_before(tmp_path):
    (tmp_path / "a.json").write_text("old")
    sink = CocoSink(tmp_path / "a.json", CATEGORY_IDS)
    for result in results((5, 5)):
        sink.write(result)
    assert (tmp_path / "a.json").read_text() == "old"
    sink.close()
    sink.close()
    assert len(json.loads((tmp_path / "a.json").read_text())) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.images.json", "a.json"]


def test_hidden_file_is_a_whole_list_after_every_frame(tmp_path):
    sink = CocoSink(tmp_path / "a.json", CATEGORY_IDS)
    lengths = []
    for result in results((2, 0, 3)):
        sink.write(result)
        (part,) = set(tmp_path.glob(".a.*.json")) - set(tmp_path.glob(".a.images.*"))
        lengths.append(len(json.loads(part.read_text())))
    sink.close()
    assert lengths == [2, 2, 5]


def test_results_without_a_coco_form_are_refused_in_one_line(tmp_path):
    sink = CocoSink(tmp_path / "a.json", CATEGORY_IDS)
    with pytest.raises(SinkError, match="have no COCO form"):
        sink.write(next(results_of(1)))
    sink.close()


def test_full_disk_leaves_a_file_with_what_was_found_before(tmp_path):
    code = f"""
import resource, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "runtime")!r}]
from pathlib import Path
from test_coco_sink import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sink = BufferedSink(CocoSink(Path(sys.argv[1]), CATEGORY_IDS), keeps_all=True)
for result in results([7] * 100):
    sink.write(result)
sink.close()
print(sink.num_written, sink.num_failed, sink.error)
"""
    path = tmp_path / "a.json"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120
    )
    num_written, num_failed, error = done.stdout.split(maxsplit=2)
    assert "File too large" in error
    assert done.stderr.count("\n") == 1
    assert int(num_written) + int(num_failed) == 100
    entries = json.loads(path.read_text())
    assert len(entries) == 7 * int(num_written)
    assert path.stat().st_size <= 20_000
