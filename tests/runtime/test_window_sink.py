from __future__ import annotations

import cv2
import pytest
from pipeline_fakes import number_of, results_of

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks import window as window_module
from runtime.pipeline.sinks.window import WindowSink, why_no_window


@pytest.fixture
def desktop(monkeypatch):
    """OpenCV's windows without a screen: what is shown, and the keys that will be pressed."""

    class Desktop:
        shown: dict[str, list[int]] = {}
        keys: list[int] = []
        is_open = True

    desk = Desktop()
    desk.shown, desk.keys = {}, []
    monkeypatch.setattr(window_module, "why_no_window", lambda: "")
    monkeypatch.setattr(cv2, "namedWindow", lambda name, flags: desk.shown.setdefault(name, []))
    monkeypatch.setattr(cv2, "resizeWindow", lambda *args: None)
    monkeypatch.setattr(
        cv2, "imshow", lambda name, image: desk.shown[name].append(number_of(image))
    )
    monkeypatch.setattr(cv2, "waitKey", lambda delay: desk.keys.pop(0) if desk.keys else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda name, prop: float(desk.is_open))
    monkeypatch.setattr(cv2, "destroyWindow", lambda name: desk.shown.pop(name))
    return desk


def test_window_shows_every_source_in_its_own(desktop):
    sink = WindowSink(lambda: None)
    for result in results_of(6):
        result.frame.source = f"camera {result.frame.index % 2}"
        sink.write(result)
    assert desktop.shown == {"camera 0": [0, 2, 4], "camera 1": [1, 3, 5]}
    sink.close()
    sink.close()
    assert desktop.shown == {}


@pytest.mark.parametrize("way", ["q", "escape", "closed"])
def test_window_ends_the_run_once(desktop, way):
    quits = []
    sink = WindowSink(lambda: quits.append(1))
    results = list(results_of(4))
    sink.write(results[0])
    assert not quits
    desktop.is_open = way != "closed"
    desktop.keys = {"q": [-1, ord("q")], "escape": [27], "closed": []}[way]
    sink.idle()
    for result in results[1:]:
        sink.write(result)
    assert quits == [1]
    sink.close()


def test_other_keys_end_nothing(desktop):
    sink = WindowSink(lambda: pytest.fail("it quit"))
    desktop.keys = [ord("a"), ord(" ")]
    for result in results_of(3):
        sink.write(result)
    sink.close()


def test_headless_opencv_is_told_in_one_line_with_a_cure(monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  Video I/O:\n  GUI:      NONE\n")
    with pytest.raises(SinkError, match="opencv-python-headless") as error:
        WindowSink(lambda: None)
    assert "\n" not in str(error.value)


def test_missing_screen_is_told_before_the_toolkit_aborts_the_process(monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:      QT5\n")
    monkeypatch.setattr(window_module.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "no screen" in why_no_window()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", ""),
        ("import sys; sys.exit('could not connect to display :9')", "connect to display :9"),
        ("import os; os.abort()", "no reason given"),
        ("import time; time.sleep(60)", "no window came within 0.5 s"),
    ],
    ids=["opens", "refuses", "aborts", "hangs"],
)
def test_screen_that_does_not_answer_ends_a_child_and_not_the_run(monkeypatch, code, expected):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:      QT5\n")
    monkeypatch.setattr(window_module.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":9")
    run = window_module.subprocess.run
    monkeypatch.setattr(
        window_module.subprocess,
        "run",
        lambda command, **options: run([*command[:2], code], **options),
    )
    monkeypatch.setattr(window_module, "LONGEST_TRY_S", 0.5 if "sleep" in code else 60.0)
    problem = why_no_window()
    assert expected in problem
    assert bool(problem) == bool(expected)
    assert "\n" not in problem


def test_system_whose_windows_need_the_first_thread_is_told(monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:      COCOA\n")
    monkeypatch.setattr(window_module.sys, "platform", "darwin")
    assert "macOS" in why_no_window()
