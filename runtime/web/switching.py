"""The bundle that runs, exchanged for another between two frames without losing one."""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from runtime.contract.errors import SessionError, one_line
from runtime.contract.manifest import Manifest
from runtime.preprocess import Frame
from runtime.restarting import restart
from runtime.threads_left import leave
from runtime.video_parts import Networks, open_networks
from runtime.web.limits import Limits

MOST_UNDRAWN = 16  # results of a source between the engine and the picture; fewer are under way
CLOSE_S = 30.0  # that the old bundle's last frames may take
END_S = 10.0  # that a bundle which is loaded, or freed, may take at the run's end
CROPS = "pose_crop"
_OF_KEY_FRAMES = ("schedule", "key_interval", "max_key_age_ms")

_log = logging.getLogger(__name__)


@dataclass
class Loaded:
    """A bundle that is loaded and warmed up for all sources.

    Attributes:
        path: as it was given.
        networks: what frames are given to. closes: frees them.
        limits: of each source; one is replaced as a whole.
        has_begun: it has taken over.
    """

    path: str
    networks: Networks
    closes: contextlib.ExitStack
    limits: list[Limits]
    has_begun: bool = False
    _num_under_way: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def manifest(self) -> Manifest:
        return self.networks.first.manifest

    def note(self, step: int) -> None:
        """Count a frame in (1) or out (-1) of the engine."""
        with self._changed:
            self._num_under_way += step
            self._changed.notify_all()

    def close_when_idle(self) -> None:
        """Free the engine once the last frame has left it."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_under_way <= 0, CLOSE_S)
        self.closes.close()


class Switch:
    """Stands between the pipeline and the bundle that runs; all its frames pass here.

    `infers` and the switch itself (as the only batcher) are the pipeline's. An exchange takes
    effect when the pipeline has given the engine a call, so that no call is of two bundles.

    Args:
        first: the bundle to begin with.
        num_sources: one of `infers` each.
        load: opens another by its path; may take long, and raises what a bad bundle raises.
    """

    def __init__(self, first: Loaded, num_sources: int, load: Callable[[str], Loaded]) -> None:
        self.running = first
        self.infers = [SwitchedPredictor(self, place) for place in range(num_sources)]
        self.loading: str | None = None  # path of the bundle that is being loaded
        self._load = load
        self._next: Loaded | None = None
        self._is_closed = False
        self._workers: list[threading.Thread] = []  # that load or free a bundle
        self._lock = threading.Lock()
        self._exchanged = threading.Condition(self._lock)

    @property
    def next_path(self) -> str | None:
        """The bundle that is being loaded, or takes over with the next frame."""
        waiting = self._next
        return self.loading or (None if waiting is None else waiting.path)

    @property
    def batches(self) -> Sequence[int]:
        """How many frames one call may take, rising, from 1."""
        batchers = self.running.networks.batchers
        return batchers[0].batches if batchers else (1,)

    def flush(self) -> None:
        """Start what was submitted; then take the bundle that waits, if one does."""
        for batcher in self.running.networks.batchers:
            batcher.flush()
        if self._next is None:
            return
        with self._lock:
            if self._next is None:
                return
            old, self.running, self._next = self.running, self._next, None
            self.running.has_begun = True
            self._exchanged.notify_all()
            closer = threading.Thread(
                target=self._close_old, args=(old, self.running), name="web close", daemon=True
            )
            self._workers = [*(each for each in self._workers if each.is_alive()), closer]
            closer.start()

    def exchange(self, path: str, patience_s: float) -> bool:
        """Load a bundle beside the running one and let it take over; blocks.

        One that waits for its frame gives way.

        Args:
            path: of the bundle.
            patience_s: how long a frame is waited for, whose turn is the exchange.

        Returns:
            Whether it runs; False: no frame came yet, it takes over with the next one.

        Raises:
            BusyError: another bundle is being loaded or took this one's place; the run is over.
            ValueError, OSError: of the bundle; the running one goes on.
        """
        with self._lock:
            self._refuse_when_busy()
            self.loading = path
            self._workers.append(threading.current_thread())
        try:
            self._drop_next()
            loaded = self._load(path)
        except BaseException:
            with self._lock:
                self.loading = None
            raise
        with self._lock:
            self.loading = None
            is_late = self._is_closed
            if not is_late:
                self._next = loaded
                if not self._exchanged.wait_for(lambda: self._next is not loaded, patience_s):
                    return False
        if is_late:
            loaded.closes.close()
        if not loaded.has_begun:
            is_over = self._is_closed
            raise BusyError("the run is over" if is_over else "another bundle was asked for since")
        return True

    def stay(self) -> None:
        """Let the running bundle go on; one that waits for its frame gives way.

        Raises:
            BusyError: another bundle is being loaded; the run is over.
        """
        with self._lock:
            self._refuse_when_busy()
        self._drop_next()

    def _refuse_when_busy(self) -> None:
        if self._is_closed or self.loading is not None:
            words = "the run is over" if self._is_closed else f"{self.loading} is being loaded"
            raise BusyError(words)

    def _drop_next(self) -> None:
        with self._lock:
            waiting, self._next = self._next, None
            if waiting is None:
                return
            self._exchanged.notify_all()
        waiting.closes.close()

    def _close_old(self, old: Loaded, new: Loaded) -> None:
        _log.info("bundle %s takes over from %s", new.path, old.path, extra={"event": "bundle"})
        try:
            old.close_when_idle()
        except Exception as error:  # an engine that does not end well is no matter to the new one
            _log.warning("bundle %s was not closed well: %s", old.path, one_line(error))

    def close(self) -> None:
        """Free what is loaded; the pipeline has ended.

        A library that loads or frees a bundle cannot be interrupted, nor outlive the interpreter:
        it is waited for, and then left to `runtime.threads_left`.
        """
        with self._lock:
            self._is_closed = True
            waiting, self._next = self._next, None
            self._exchanged.notify_all()
            workers = [each for each in self._workers if each is not threading.current_thread()]
        end = monotonic() + END_S
        for worker in workers:
            worker.join(max(end - monotonic(), 0.0))
            if worker.is_alive():
                leave(worker)
        for each in (waiting, self.running):
            if each is not None:
                each.closes.close()


class BusyError(Exception):
    """An exchange that cannot begin now."""


class SwitchedPredictor:
    """One source's way to the running bundle; stands where a `Predictor` does.

    Thresholds are those of `Loaded.limits`, whatever the pipeline gives.
    """

    def __init__(self, switch: Switch, place: int) -> None:
        self._switch = switch
        self._place = place
        self._undrawn: OrderedDict[int, tuple[Any, Any]] = OrderedDict()  # by id: result, drawer
        self._lock = threading.Lock()

    def submit(
        self,
        frame_bgr: Frame,
        score_threshold: Any = None,  # noqa: ARG002 - as of other predictors
        iou_threshold: Any = None,  # noqa: ARG002
        *,
        time_s: float | None = None,
        num_dropped: int = 0,
    ) -> SwitchedTicket:
        """Start on one frame and return; as `Predictor.submit`."""
        loaded = self._switch.running
        limits = loaded.limits[self._place]
        infers = loaded.networks.infers[self._place]
        ticket = infers.submit(
            frame_bgr, limits.row, limits.iou, time_s=time_s, num_dropped=num_dropped
        )
        loaded.note(1)
        return SwitchedTicket(self, loaded, infers, ticket)

    def draw(self, frame_bgr: Frame, result: Any) -> Frame:
        """Draw a result into its frame, in place, as the bundle does that found it."""
        with self._lock:
            _, drawer = self._undrawn.pop(id(result), (None, None))
        if drawer is None:
            drawer = self._switch.running.networks.infers[self._place]
        drawn: Frame = drawer.draw(frame_bgr, result)
        return drawn

    def restart(self, reason: str = "asked") -> None:
        """Begin anew with the next frame, as after a reconnect."""
        restart(self._switch.running.networks.infers[self._place], reason)

    def remember(self, result: Any, drawer: Any) -> None:
        """Note who draws a result; it is kept until then, so that no other takes its id."""
        with self._lock:
            self._undrawn[id(result)] = (result, drawer)
            while len(self._undrawn) > MOST_UNDRAWN:
                self._undrawn.popitem(last=False)


@dataclass(slots=True)
class SwitchedTicket:
    """A frame under way in the bundle that took it."""

    owner: SwitchedPredictor
    loaded: Loaded
    drawer: Any
    ticket: Any
    is_out: bool = False

    def result(self) -> Any:
        """Wait for the frame's result; again gives the same."""
        try:
            found = self.ticket.result()
        finally:
            if not self.is_out:
                self.is_out = True
                self.loaded.note(-1)
        self.owner.remember(found, self.drawer)
        return found

    @property
    def timings(self) -> Any:
        """Where the time went, as the predictor's ticket tells."""
        return self.ticket.timings


def load_beside(args: argparse.Namespace, path: str, num_sources: int) -> Loaded:
    """Load a bundle for all sources as the command line asks, with thresholds of its own.

    Raises:
        BundleError, SessionError, ValueError: as `open_networks`; a bundle that takes crops.
    """
    from runtime.contract.bundle import Bundle

    manifest = Bundle.open(path, allow_unverified=args.allow_unverified).manifest
    if manifest.task == CROPS:
        raise SessionError(
            f"{path} is of task {CROPS}, which takes crops of people, not frames; expected another "
            "task. Give it as --pose."
        )
    own = argparse.Namespace(**vars(args))
    own.bundle, own.score_threshold, own.iou_threshold = path, None, None
    if not manifest.state:
        for name in _OF_KEY_FRAMES:
            setattr(own, name, None)
    with contextlib.ExitStack() as stack:
        networks = open_networks(own, num_sources, stack)
        limits = [Limits.of(networks.first.manifest)] * num_sources
        return Loaded(path, networks, stack.pop_all(), list(limits))
