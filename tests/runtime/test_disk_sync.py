from __future__ import annotations

import os
import time

import pytest
from pipeline_fakes import results_of
from sink_servers import PATIENCE_S

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks import disk_sync
from runtime.pipeline.sinks.disk_sync import DiskSync
from runtime.pipeline.sinks.json_lines import JsonLinesSink
from runtime.pipeline.sinks.video_file import VideoFileSink


def test_new_data_is_synced_to_the_disk_soon_and_at_the_end(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(disk_sync, "_sync", lambda descriptor: synced.append(os.fstat(descriptor)))
    with (tmp_path / "a").open("wb", buffering=0) as file:
        sync = DiskSync(file.fileno(), "a", interval_s=0.01)
        file.write(b"123")
        sync.note()
        while not any(state.st_size == 3 for state in synced):
            time.sleep(0.001)
        file.write(b"456")
        sync.close()
    assert synced[-1].st_size == 6


def test_idle_file_is_not_synced_again_and_again(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(disk_sync, "_sync", synced.append)
    with (tmp_path / "a").open("wb", buffering=0) as file:
        sync = DiskSync(file.fileno(), "a", interval_s=0.001)
        time.sleep(0.05)
        sync.close()
    assert len(synced) <= 2


def test_disk_that_does_not_take_it_is_told_at_the_next_write(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk_sync, "_sync", fail)
    sink = JsonLinesSink(tmp_path / "a.jsonl")
    result = next(results_of(1))
    sink.write(result)
    sink._sync._thread.join(PATIENCE_S)
    with pytest.raises(SinkError, match="did not get to the disk: Input/output error"):
        sink.write(result)
    sink.close()


@pytest.mark.parametrize("kind", ["lines", "video"])
def test_disk_that_does_not_take_the_end_is_told_by_close(tmp_path, monkeypatch, kind):
    def fail(descriptor):
        raise OSError(5, "Input/output error")

    if kind == "lines":
        sink = JsonLinesSink(tmp_path / "a.jsonl")
    else:
        sink = VideoFileSink(tmp_path / "a.mp4", size_wh=(64, 48), fps=25.0)
    monkeypatch.setattr(disk_sync, "_sync", fail)
    with pytest.raises(SinkError, match="did not get to the disk: Input/output error"):
        sink.close()
    sink.close()
