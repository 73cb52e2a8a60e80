"""The web page of a run: its pictures, its state, its thresholds and bundles, over HTTP.

    pipeline (its threads) -> Board, RecentTimes -> server (a thread, an event loop) -> browsers

The pipeline never waits for the server: it leaves the newest picture on a board and its figures in
its own counts, which the server reads. What is asked for by HTTP takes effect between two frames.
"""
