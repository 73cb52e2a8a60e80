"""A run as it is seen from outside: what is asked of it and what it answers, without HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from runtime.contract.errors import KestrelError, one_line
from runtime.pipeline.sources.base import Source
from runtime.web.board import Board
from runtime.web.card import describe_bundles, describe_running, write_card
from runtime.web.limits import takes
from runtime.web.switching import BusyError, Loaded, Switch
from runtime.web.watching import Watch

TICK_S = 1.0
SWITCH_WAIT_S = 10.0  # for the frame between which and the last a bundle is exchanged

T = TypeVar("T")


class RunFace:
    """What the server knows of a run, and may change in it; for the server's thread.

    Args:
        sources: of the run, in their order.
        board: their pictures.
        watch: their figures.
        switch: the bundle that runs.
        bundles: paths of those that may run, the first one's included.

    Attributes:
        shown: name of the source that the page shows.
        thresholds_version: rises whenever thresholds are set, so that all pages follow.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        board: Board,
        watch: Watch,
        switch: Switch,
        bundles: Sequence[str],
    ) -> None:
        self.sources = tuple(sources)
        self.names = tuple(source.name for source in sources)
        self.board, self.watch, self.switch = board, watch, switch
        self.bundles = tuple(dict.fromkeys(bundles))
        self.shown = self.names[0]
        self.thresholds_version = 0
        self.is_over = False
        self._described: tuple[Loaded, dict[str, Any]] | None = None
        self._ticked: asyncio.Future[None] | None = None
        self._exchanges: set[asyncio.Future[Any]] = set()  # that are waited for

    # --- figures

    def bundle(self) -> dict[str, Any]:
        """The bundle that runs."""
        running = self.switch.running
        if self._described is None or self._described[0] is not running:
            self._described = running, describe_running(running)
        return self._described[1]

    def state(self) -> dict[str, Any]:
        """Everything that changes, as of the last second."""
        why_ill = self.watch.why_ill()
        return {
            "sources": self.watch.sources_to_json(),
            "shown": self.shown,
            "stages": self.watch.stages,
            "bundle": self.bundle(),
            "switching": self.switching(),
            "health": {"ok": not why_ill, "reason": why_ill},
            "thresholds_version": self.thresholds_version,
            "uptime_s": round(self.watch.uptime_s, 1),
            "clients": self.board.num_viewers,
        }

    def switching(self) -> dict[str, str] | None:
        """The bundle that is being loaded, or takes over with the next frame."""
        path = self.switch.next_path
        return None if path is None else {"path": path}

    async def tick(self) -> None:
        """Read the figures every second, until the run is over."""
        self.board.bind(asyncio.get_running_loop())
        while not self.is_over:
            self.watch.sample()
            ticked, self._ticked = self._ticked, asyncio.get_running_loop().create_future()
            if ticked is not None:
                ticked.set_result(None)
            await asyncio.sleep(TICK_S)

    async def next_tick(self) -> None:
        """Wait until the figures are read again, or the run is over."""
        if self._ticked is not None and not self.is_over:
            await asyncio.wait((self._ticked,), timeout=2 * TICK_S)

    def end(self) -> None:
        """The run is over: let everybody go."""
        self.is_over = True
        self.board.close()
        for each in self._exchanges:
            if not each.done():
                each.set_exception(BusyError("the run is over"))
        if self._ticked is not None and not self._ticked.done():
            self._ticked.set_result(None)

    # --- sources

    def sources_to_json(self) -> dict[str, Any]:
        rows = [
            {"name": each.name, "is_live": each.is_live, "state": each.state.value}
            for each in self.sources
        ]
        return {"sources": rows, "shown": self.shown}

    def find(self, name: str | None) -> str | None:
        """A source's name, or the shown one's; None where there is no such source."""
        if name is None:
            return self.shown
        return name if name in self.names else None

    # --- thresholds

    def thresholds(self) -> dict[str, Any]:
        running = self.switch.running
        manifest = running.manifest
        takes_score, takes_iou = takes(manifest)
        defaults = manifest.defaults
        pairs = zip(self.names, running.limits, strict=True)
        return {
            "classes": list(manifest.classes),
            "takes_score": takes_score,
            "takes_iou": takes_iou,
            "defaults": {
                "score": defaults.score_threshold if takes_score else None,
                "iou": defaults.iou_threshold if takes_iou else None,
            },
            "sources": [{"source": name, **limits.to_json()} for name, limits in pairs],
        }

    def set_thresholds(self, asked: dict[str, Any], name: str | None) -> None:
        """Change them from the next frame on.

        Args:
            asked: as of `Limits.changed`.
            name: of a source, or None for all.

        Raises:
            LimitsError: the running bundle does not take them; nothing is changed.
        """
        running = self.switch.running
        changed = [
            limits.changed(running.manifest, asked) if name in (None, each) else limits
            for each, limits in zip(self.names, running.limits, strict=True)
        ]
        running.limits = changed
        self.thresholds_version += 1

    # --- bundles

    async def card(self) -> dict[str, Any]:
        running = self.switch.running
        return await asyncio.to_thread(write_card, running)

    async def bundles_to_json(self) -> dict[str, Any]:
        running = self.switch.running.path
        rows = await asyncio.to_thread(describe_bundles, self.bundles, running)
        return {"bundles": rows, "switching": self.switching()}

    async def exchange(self, path: str) -> bool:
        """Let another bundle take over; True when it has, False when it will with the next frame.

        Raises:
            BusyError: not now.
            BundleRefusedError: it cannot be used, the running one goes on.
        """
        try:
            if path == self.switch.running.path:
                await self._beside(self.switch.stay)
                return True
            return await self._beside(lambda: self.switch.exchange(path, SWITCH_WAIT_S))
        except (BusyError, asyncio.CancelledError):
            raise
        except Exception as error:  # whatever a library raises of a bundle that it cannot run
            kind = "" if isinstance(error, (KestrelError, OSError)) else f"{type(error).__name__}: "
            raise BundleRefusedError(f"{kind}{one_line(error)}") from error

    async def _beside(self, work: Callable[[], T]) -> T:
        """Do long work of the switch on a thread, which `Switch.close` waits for."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def tell(result: T | None, error: BaseException | None) -> None:
            if done.done():  # cancelled, or the run is over
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell, result, error)

        self._exchanges.add(done)
        try:
            if self.is_over:
                raise BusyError("the run is over")
            threading.Thread(target=run, name="web load", daemon=True).start()
            return await done
        finally:
            self._exchanges.discard(done)


class BundleRefusedError(Exception):
    """A bundle that cannot run here."""
