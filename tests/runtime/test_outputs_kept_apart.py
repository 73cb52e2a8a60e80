"""No output of a script takes the place of what the script reads."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from tiny_bundle import paint, write_tiny_bundle

from runtime import run_images, run_video
from runtime.contract.errors import SessionError, SinkError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle, two pictures in folders of their own, and a clip."""
    write_tiny_bundle(tmp_path / "bundle", batches=(1,))
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "pictures" / name / "1.png"), paint(48, 64, {0: (4, 4, 30, 30)}))
    writer = cv2.VideoWriter(
        str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48)
    )
    for _ in range(5):
        writer.write(paint(48, 64, {0: (4, 4, 30, 30)}))
    writer.release()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


IMAGE_RUNS = {
    "annotated pictures over the pictures": ["{0}/pictures/*/*.png", "--out", "{0}/r.json",
                                             "--annotated", "{0}/pictures"],
    "results over the picture": ["{0}/pictures/a/1.png", "--out", "{0}/pictures/a/1.png"],
    "results over the manifest": ["{0}/pictures/a", "--out", "{0}/bundle/manifest.json"],
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGE_RUNS)
def test_run_images_refuses_to_overwrite_what_it_reads(folder: Path, name: str):
    before = contents(folder)
    words = [word.format(folder) for word in IMAGE_RUNS[name]]
    with pytest.raises(SinkError, match=r"(?i)read|overwritten"):
        run_images.main([str(folder / "bundle"), *words])
    assert contents(folder) == before


VIDEO_RUNS = {
    "video over its source by URI": ["--source", "video:{0}/clip.avi", "--out", "{0}/clip.avi"],
    "results over the manifest": ["--source", "{0}/clip.avi", "--json",
                                  "{0}/bundle/manifest.json"],
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEO_RUNS)
def test_run_video_refuses_to_overwrite_what_it_reads(folder: Path, name: str):
    before = contents(folder)
    words = [word.format(folder) for word in VIDEO_RUNS[name]]
    with pytest.raises(SinkError, match="read or written already"):
        run_video.main([str(folder / "bundle"), *words])
    assert contents(folder) == before


def test_backend_that_is_installed_but_broken_is_a_session_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from runtime.contract.bundle import Bundle
    from runtime.sessions import open_session, openvino_session

    def broken(*args: object, **options: object) -> None:
        raise ImportError("libtbb.so.12: cannot open shared object file", name="openvino")

    bundle = Bundle.open(folder / "bundle")
    monkeypatch.setattr(openvino_session, "open_session", broken)
    with pytest.raises(SessionError, match="cannot be imported"):
        open_session(bundle, "openvino")
    assert open_session(bundle, device="cpu").backend == "onnxruntime"
