"""The web page of a run of run_video.py, put between its parts."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from runtime.pipeline.lanes import AGES_KEPT
from runtime.pipeline.sources.base import Source
from runtime.pipeline.stages import Pipeline
from runtime.video_parts import Networks
from runtime.web.board import Board, WebSink
from runtime.web.history import RecentTimes
from runtime.web.limits import Limits
from runtime.web.options import access_of
from runtime.web.run_face import RunFace
from runtime.web.server import WebServer
from runtime.web.switching import Loaded, Switch, load_beside
from runtime.web.watching import Watch


class WebPage:
    """What a run needs to be seen and changed from a browser.

    Attributes:
        sink: for the pipeline, as it is: it waits for nobody.
        switch: its `infers` take the place of the networks', it that of their batchers.
        times: for the pipeline.
    """

    def __init__(
        self, server: WebServer, sources: Sequence[Source], switch: Switch, bundles: Sequence[str]
    ) -> None:
        self.board = Board([source.name for source in sources])
        self.sink = WebSink(self.board, server.access.place.url)
        self.switch = switch
        self.times = RecentTimes(AGES_KEPT)
        self._server = server
        self._sources = sources
        self._bundles = bundles

    @property
    def networks(self) -> Networks:
        """Those of the bundle that runs."""
        return self.switch.running.networks

    def start(self, pipeline: Pipeline) -> None:
        """Serve the run; closed with what `open_web` was given."""
        watch = Watch(pipeline, self.times, self.board)
        self._server.start(RunFace(self._sources, self.board, watch, self.switch, self._bundles))


def take_port(args: argparse.Namespace, stack: contextlib.ExitStack) -> WebServer:
    """Take the port that --web asks for, before anything that takes long.

    Args:
        args: with the options of `runtime.web.options.add_web`.
        stack: gives it back.

    Raises:
        SinkError: the address cannot be served.
    """
    server = WebServer(access_of(args))
    stack.callback(server.close)
    return server


def open_web(
    args: argparse.Namespace,
    server: WebServer,
    sources: Sequence[Source],
    networks: Networks,
    closes: contextlib.ExitStack,
    stack: contextlib.ExitStack,
) -> WebPage:
    """Put a switch in front of the networks, and the page before it.

    Args:
        args: with the options of `runtime.web.options.add_web`.
        server: of `take_port`.
        networks: of the first bundle.
        closes: frees the networks.
        stack: closes the page.
    """
    limits = Limits.of(networks.first.manifest, args.score_threshold, args.iou_threshold)
    first = Loaded(args.bundle, networks, closes, [limits] * len(sources))
    switch = Switch(first, len(sources), lambda path: load_beside(args, path, len(sources)))
    stack.callback(switch.close)
    stack.callback(server.close)  # clients go before what they ask
    return WebPage(server, sources, switch, [args.bundle, *args.web_bundles])
