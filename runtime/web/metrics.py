"""A run's figures in Prometheus' text format, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/, names after
https://prometheus.io/docs/practices/naming/: base units, `_total` of what only rises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runtime.pipeline.sources.base import SourceState
from runtime.web.watching import Watch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = {"0.5": "p50", "0.9": "p90", "0.99": "p99"}

Sample = tuple[str, Mapping[str, str], float]  # what follows the family's name, labels, value


def write_metrics(watch: Watch, bundle: Mapping[str, Any], num_clients: int) -> str:
    """All families, one after the other.

    Args:
        watch: of the run.
        bundle: {name, task, model, variant, precision, backend}, of the one that runs.
        num_clients: that look at pictures.
    """
    sources = watch.summaries
    labels = [{"source": each.name} for each in sources]
    info = {key: str(bundle[key]) for key in ("name", "task", "model", "precision", "backend")}
    families = [
        _counter(
            "captured_frames",
            "Frames that a source gave, and those that could not be decoded.",
            zip(labels, (each.num_captured for each in sources), strict=True),
        ),
        _counter(
            "delivered_frames",
            "Frames whose results every output was given.",
            zip(labels, (each.num_delivered for each in sources), strict=True),
        ),
        _counter(
            "dropped_frames",
            "Frames that were not inferred, by reason.",
            (
                ({"source": each.name, "reason": reason}, count)
                for each in sources
                for reason, count in each.dropped.items()
            ),
        ),
        _counter(
            "source_reconnects",
            "Times that a source was lost and came back.",
            zip(labels, (each.num_reconnects for each in sources), strict=True),
        ),
        _family(
            "source_state",
            "gauge",
            "1 for the state that a source is in.",
            (
                ("", {"source": each.name, "state": state.value}, float(each.state is state))
                for each in sources
                for state in SourceState
            ),
        ),
        _family(
            "frame_rate_hertz",
            "gauge",
            "Frames a second of a source, over the last seconds.",
            (("", pair, rate) for pair, rate in zip(labels, watch.rates, strict=True)),
        ),
        _family("stage_seconds", "summary", "What a frame costs by stage.", _stages(watch)),
        _gauge("healthy", "1 where frames are delivered.", {}, not watch.why_ill()),
        _gauge("web_viewers", "Clients that look at pictures.", {}, num_clients),
        _gauge("uptime_seconds", "Since the run began.", {}, watch.uptime_s),
        _gauge("bundle_info", "The bundle that runs.", info, 1),
    ]
    return "".join(families)


def _stages(watch: Watch) -> Iterable[Sample]:
    for stage, spread in watch.times.spreads().items():
        labels = {"stage": stage}
        for quantile, name in QUANTILES.items():
            yield "", labels | {"quantile": quantile}, getattr(spread, name) / 1e3
        yield "_sum", labels, spread.mean * spread.count / 1e3
        yield "_count", labels, spread.count


def _counter(name: str, words: str, rows: Iterable[tuple[Mapping[str, str], int]]) -> str:
    return _family(f"{name}_total", "counter", words, (("", *row) for row in rows))


def _gauge(name: str, words: str, labels: Mapping[str, str], value: float) -> str:
    return _family(name, "gauge", words, [("", labels, float(value))])


def _family(name: str, kind: str, words: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP kestrel_{name} {words}", f"# TYPE kestrel_{name} {kind}"]
    for suffix, labels, value in samples:
        inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        lines.append(f"kestrel_{name}{suffix}{f'{{{inner}}}' if inner else ''} {float(value)!r}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """A label's value: backslash, quote and new line are written as two signs.

    A file's name may hold bytes that are no UTF-8; they are written as Python does.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
