"""Raw frames to a row of the engine's input by the letterbox kernel, for sessions on a GPU.

A frame is copied once on the host, into pinned memory (the caller may reuse it at once), and the
kernel resizes and pads it straight into the engine's input. Where CPU and GPU share their memory
(Jetson) the kernel reads the pinned memory itself; elsewhere it is copied to the GPU first.

Not run on a GPU yet. So that a driver or device on which it goes wrong costs no result, the kernel
proves itself when it is loaded: it letterboxes frames whose result `runtime/preprocess.py` gives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.contract.errors import SessionError
from runtime.contract.manifest import InputGeometry
from runtime.engines.kernels.launching import Driver, LoadedKernel, load_kernel
from runtime.engines.kernels.letterbox import (
    BLOCK,
    PlacedFrame,
    can_letterbox,
    grid_for,
    pack_rows,
)
from runtime.engines.kernels.shipped import LETTERBOX, LETTERBOX_ROWS, Version
from runtime.preprocess import Frame, Letterbox
from runtime.sessions.base import RawFrames
from runtime.sessions.buffers import Cuda, DeviceBuffer, PinnedBuffer

_PROOFS = (  # sizes of frames (height, width, channels), and what they are letterboxed to
    ((90, 160, 3), InputGeometry(48, 64)),
    ((37, 53, 4), InputGeometry(61, 97, alignment="top_left")),
    ((50, 50, 1), InputGeometry(32, 40, resize="stretch")),
)
_PROOF_LEVELS = 1  # OpenCV rounds its weights to fewer bits
_PROOF_SHARE = 0.99  # some builds of OpenCV round still more; a wrong place shows everywhere
_BYTE = np.dtype(np.uint8)


class FrameStage:
    """Pinned memory of one inference's frames; grows with them."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._rows: dict[int, PinnedBuffer] = {}

    def put(self, row: int, frame: Frame) -> PinnedBuffer:
        """Copy a frame, without gaps between its lines. The row's last one must have been read."""
        held = self._rows.get(row)
        if held is None or held.nbytes < frame.nbytes:
            if held is not None:
                held.close()
            held = self._rows[row] = PinnedBuffer(self._cuda, (frame.nbytes,), _BYTE)
        target = held.array[: frame.nbytes].reshape(frame.shape)
        np.copyto(target, frame)
        return held

    def close(self) -> None:
        """Free it; twice is harmless."""
        for held in self._rows.values():
            held.close()
        self._rows.clear()


class FrameUpload:
    """The frames of one CUDA stream on their way into the engine's input."""

    def __init__(self, letterboxer: GpuLetterbox, stream: Any) -> None:
        self._letterboxer = letterboxer
        self._cuda = letterboxer.cuda
        self._stream = stream
        self._device: dict[int, DeviceBuffer] = {}

    def open_stage(self) -> FrameStage:
        """Pinned memory for one more inference that may be under way."""
        return FrameStage(self._cuda)

    def enqueue(self, stage: FrameStage, given: RawFrames, images: int) -> None:
        """Queue everything that brings frames into the engine's input.

        Args:
            stage: that no queued work reads any more.
            given: of one network size.
            images: address of the input, (B, H, W, 3) uint8.

        Raises:
            SessionError: out of memory, or CUDA refuses something.
        """
        placed = []
        for row, (frame, letterbox) in enumerate(zip(given.frames, given.letterboxes, strict=True)):
            height, width, channels = frame.shape
            pinned = stage.put(row, frame)
            address = pinned.address
            if not self._letterboxer.is_integrated:
                address = self._room(row, frame.nbytes)
                self._cuda.copy_to_device(address, pinned.address, frame.nbytes, self._stream)
            placed.append(PlacedFrame(address, width * channels, channels, letterbox))
        self._letterboxer.launch(placed, images, self._stream)

    def close(self) -> None:
        """Free device memory, which nothing queued may use any more; twice is harmless."""
        for buffer in self._device.values():
            buffer.close()
        self._device.clear()

    def _room(self, row: int, nbytes: int) -> int:
        """Device memory for a row; one copy does, since all uses are queued on one stream."""
        held = self._device.get(row)
        if held is None or held.nbytes < nbytes:
            if held is not None:
                self._cuda.wait_for_stream(self._stream)  # a kernel may still read it
                held.close()
            held = self._device[row] = DeviceBuffer(self._cuda, nbytes)
        return held.address


class GpuLetterbox:
    """The letterbox kernel in the GPU, shared by the streams of a session."""

    def __init__(self, cuda: Cuda, kernel: LoadedKernel, *, is_integrated: bool) -> None:
        self.cuda = cuda
        self.is_integrated = is_integrated
        self._kernel = kernel

    @classmethod
    def open(cls, cuda: Cuda, driver: Driver) -> GpuLetterbox:
        """Load the kernel and let it prove itself.

        Raises:
            SessionError: it cannot be loaded, or gives other pixels than the CPU.
        """
        cuda.make_current()
        capability = parse_capability(cuda.device().compute_capability)
        is_integrated = cuda.is_integrated()
        loaded = cls(cuda, load_kernel(driver, LETTERBOX, capability), is_integrated=is_integrated)
        try:
            for (height, width, channels), geometry in _PROOFS:
                loaded._prove(_make_proof(height, width, channels), geometry)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def open_upload(self, stream: Any) -> FrameUpload:
        """For one CUDA stream."""
        return FrameUpload(self, stream)

    def launch(self, frames: Sequence[PlacedFrame], images: int, stream: Any) -> None:
        """Queue the letterboxing of frames that the GPU reads, into the first rows of `images`."""
        height, width = frames[0].letterbox.network_hw
        self.cuda.make_current()
        for first in range(0, len(frames), LETTERBOX_ROWS):
            some = frames[first : first + LETTERBOX_ROWS]
            self._kernel.launch(
                stream,
                grid_for((height, width), len(some)),
                BLOCK,
                (pack_rows(some), images + first * height * width * 3, height, width),
            )

    def close(self) -> None:
        """Unload the kernel, which nothing queued may use any more; twice is harmless."""
        with contextlib.suppress(SessionError):  # a dead device; the unloading logs its own error
            self.cuda.make_current()
        self._kernel.close()

    def _prove(self, frame: Frame, geometry: InputGeometry) -> None:
        letterbox = Letterbox.fit(frame.shape[:2], geometry)
        wanted = letterbox.apply(frame)
        got = self._run_once(RawFrames([frame], [letterbox], 1), wanted.shape)
        difference = np.abs(got.astype(np.int16) - wanted)
        share = float((difference <= _PROOF_LEVELS).mean())
        if share < _PROOF_SHARE:
            raise SessionError(
                f"the letterbox kernel (sm_{self._kernel.target}) agrees with the CPU in "
                f"{share:.1%} of the values; expected {_PROOF_SHARE:.0%} at least."
            )

    def _run_once(self, given: RawFrames, shape: tuple[int, ...]) -> Frame:
        cuda = self.cuda
        with contextlib.ExitStack() as cleanup:
            stream = cuda.create_stream()
            cleanup.callback(cuda.destroy_stream, stream)
            result = PinnedBuffer(cuda, shape, _BYTE)
            cleanup.callback(result.close)
            images = DeviceBuffer(cuda, result.nbytes)
            cleanup.callback(images.close)
            upload = self.open_upload(stream)
            cleanup.callback(upload.close)
            stage = upload.open_stage()
            cleanup.callback(stage.close)
            cleanup.callback(cuda.drain_stream, stream)  # before anything is freed
            upload.enqueue(stage, given, images.address)
            cuda.copy_to_host(result.address, images.address, result.nbytes, stream)
            cuda.wait_for_stream(stream)
            return np.array(result.array, np.uint8)


def frames_for_gpu(frames: Sequence[Frame], letterboxes: Sequence[Letterbox]) -> list[Frame] | None:
    """Frames as (h, w, channels), or None where the kernel does not take one of them."""
    shaped = [frame[..., None] if frame.ndim == 2 else frame for frame in frames]
    fits = all(frame.dtype == np.uint8 and frame.shape[2] in (1, 3, 4) for frame in shaped)
    return shaped if fits and all(map(can_letterbox, letterboxes)) else None


def parse_capability(text: str) -> Version:
    """(8, 7) of "8.7"."""
    major, minor = text.split(".")
    return int(major), int(minor)


def _make_proof(height: int, width: int, channels: int) -> Frame:
    """A frame whose neighbours have nothing in common, always the same."""
    random = np.random.default_rng(height * width)
    return random.integers(0, 256, (height, width, channels), np.uint8)
