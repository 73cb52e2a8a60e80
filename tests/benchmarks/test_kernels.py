"""The kernels' benchmark, on a GPU that is played: the real kernels run, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_driver import FakeDriver

from benchmarks import kernels
from benchmarks.measure import kernel_bench
from benchmarks.measure.kernel_bench import KernelBench, find_fault
from benchmarks.measure.selection import Gpu, Head, find_floors_us, keep, make_feeds
from runtime.contract.manifest import InputGeometry
from runtime.engines.kernels.launching import Driver
from runtime.preprocess import Letterbox
from runtime.sessions.buffers import Cuda

ROOT = Path(__file__).resolve().parents[2]
SMALL = Head(2200, 9, 64, kept=20, batch=2, mean=-5.0)  # two blocks an image


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    fake = FakeCuda()
    yield fake
    assert fake.violations == []
    assert fake.leaks() == []


@pytest.fixture
def driver(cuda: FakeCuda) -> FakeDriver:
    return FakeDriver(cuda)


@pytest.fixture
def bench(cuda: FakeCuda, driver: FakeDriver) -> Iterator[KernelBench]:
    with KernelBench(Cuda(cuda), Driver(driver)) as made:
        yield made


def test_results_on_the_gpu_are_those_of_the_reference(bench: KernelBench):
    for seed in range(3):
        feeds = make_feeds(SMALL, seed)
        with bench.place(SMALL, feeds) as placed:
            got = bench.run(SMALL, placed)
        assert got["num_detections"].min() > 5
        assert find_fault(SMALL, feeds, got) == ""


def test_wrong_results_are_told(bench: KernelBench):
    feeds = make_feeds(SMALL, 0)
    with bench.place(SMALL, feeds) as placed:
        right = bench.run(SMALL, placed)
    for name, words in (
        ("anchors", "candidates"),
        ("scores", "scores"),
        ("num_detections", "rows are kept, not"),
        ("det_indices", "other rows"),
        ("det_boxes", "det_boxes is not"),
        ("det_scores", "det_scores is not"),
        ("det_classes", "det_classes is not"),
    ):
        wrong = {key: value.copy() for key, value in right.items()}
        wrong[name].reshape(-1)[0] += 1
        assert words in find_fault(SMALL, feeds, wrong), name


def test_a_run_that_gives_other_bytes_is_a_race(
    bench: KernelBench, monkeypatch: pytest.MonkeyPatch
):
    feeds = make_feeds(SMALL, 0)
    with bench.place(SMALL, feeds) as placed:
        assert kernels.find_race(bench, SMALL, placed, 2) == []
        runs = [{"scores": np.array([1.0])}] * 3 + [{"scores": np.array([2.0])}]
        monkeypatch.setattr(bench, "run", lambda head, placed: runs.pop(0))
        assert kernels.find_race(bench, SMALL, placed, 9) == ["repeat 2: other scores"]


def test_a_graph_runs_every_input_in_turn(bench: KernelBench, driver: FakeDriver, cuda: FakeCuda):
    cuda.clock_ms = 0.0
    feeds = [make_feeds(SMALL, seed) for seed in range(3)]
    with (
        bench.place(SMALL, feeds[0]) as first,
        bench.place(SMALL, feeds[1]) as second,
        bench.place(SMALL, feeds[2]) as third,
    ):
        bench.time_us("both", SMALL, [first, second, third], 2)
    names = [name for name, _, _ in driver.launched]
    assert names == ["kestrel_select", "kestrel_nms"] * 3  # captured once, replayed


def test_bandwidth_and_launch_are_measured(bench: KernelBench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel_bench, "COPIED_NBYTES", 1 << 12)
    monkeypatch.setattr(kernel_bench, "EMPTY_LAUNCHES", 3)

    def time_graph_us(enqueue: Callable[[], None], num_replays: int) -> float:
        enqueue()
        bench._cuda.wait_for_stream(bench._stream)
        return 12.0

    monkeypatch.setattr(bench, "_time_graph_us", time_graph_us)
    gpu = bench.measure_gpu(1e9)
    assert gpu == Gpu(2 * (1 << 12) * kernel_bench.NUM_COPIES / 12e-6, 1e9, 4.0)


def test_letterboxes_are_launched_one_a_frame(
    bench: KernelBench, driver: FakeDriver, cuda: FakeCuda
):
    letterbox = Letterbox.fit((54, 96), InputGeometry(height=32, width=32))
    bench.time_letterbox_us(letterbox, 3, 2)
    names = [name for name, _, _ in driver.launched]
    assert names[-3:] == ["kestrel_letterbox"] * 3


def test_floors_are_bytes_pairs_and_launches():
    gpu = Gpu(bytes_a_s=4e12, clock_hz=2e9, launch_us=1.5)
    floors = find_floors_us(Head(1_000_000, 4, 1000), 128_000, gpu)
    assert floors == pytest.approx({"select": 4 + 1.5, "nms": 8 + 1.5, "both": 4 + 8 + 3})


def test_without_a_gpu_every_step_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(kernels, "why_no_gpu", lambda: "the GPU is at lunch")
    record = tmp_path / "kernels.json"
    assert kernels.main(["--head", "street-512", "--out", str(record)]) == 0
    document = json.loads(record.read_text())
    assert set(document["skipped"]) == {"correctness", "races", "times", "letterbox", "peers"}
    assert "times_us" not in document["heads"]["street-512"]
    assert capsys.readouterr().out.count("the GPU is at lunch") == 5


def test_a_kernel_that_does_nothing_fails_the_run(
    cuda: FakeCuda,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    driver.does_nothing = True
    monkeypatch.setattr(kernel_bench, "COPIED_NBYTES", 1 << 12)
    monkeypatch.setattr(KernelBench, "_time_graph_us", lambda self, enqueue, num: 10.0)
    monkeypatch.setattr(kernels, "why_no_gpu", lambda: "")
    monkeypatch.setattr(kernels, "Cuda", type("", (), {"load": lambda: Cuda(cuda)}))
    monkeypatch.setattr(kernels, "Driver", type("", (), {"load": lambda: Driver(driver)}))
    monkeypatch.setitem(kernels.HEADS, "street-512", SMALL)
    monkeypatch.setattr(kernels, "ROTATED_NBYTES", 1)
    monkeypatch.setattr(kernels, "measure_letterbox", lambda *given: {})
    options = ["--head", "street-512", "--inputs", "1", "--repeats", "1", "--no-peers"]
    assert kernels.main(options) == 1
    assert "seed 0: image 0" in capsys.readouterr().out


def test_pytorch_peer_keeps_what_the_reference_keeps(tmp_path: Path):
    head = Head(500, 6, 80, kept=15, batch=2, mean=-4.0)
    feeds = [make_feeds(head, seed) for seed in range(2)]
    stacked = {name: np.stack([each[name] for each in feeds]) for name in feeds[0]}
    np.savez(tmp_path / "inputs.npz", candidates=head.candidates, kept=head.kept, **stacked)
    command = [sys.executable, str(ROOT / "training" / "time_selection.py"), "inputs.npz"]
    done = subprocess.run(
        [*command, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    kept = [keep(head, feeds[0], image) for image in range(head.batch)]
    expected = [(each.flat[each.rows] // head.classes).tolist() for each in kept]
    assert answer["fixed_anchors"] == expected
    assert answer["torchvision_anchors"] == expected
    assert answer["fixed_us"] > 0
