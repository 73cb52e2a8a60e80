"""JSON Schemas (draft 2020-12, as OpenAPI 3.1 has them) of what the server takes and gives."""

from __future__ import annotations

from typing import Any

from runtime.pipeline.sources.base import SourceState

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TRUTH: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}


def ref(name: str) -> Schema:
    """One of SCHEMAS."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def table_of(values: Schema) -> Schema:
    """An object whose names are free."""
    return {"type": "object", "additionalProperties": values}


def maybe(schema: Schema) -> Schema:
    """The same, or null."""
    if set(schema) == {"type"}:
        return {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def record(properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


_STATES: Schema = {"type": "string", "enum": [state.value for state in SourceState]}
_MANIFEST = {"task": TEXT, "model": TEXT, "variant": TEXT}
_BUNDLE = {**_MANIFEST, "name": TEXT, "path": TEXT, "precision": TEXT, "backend": TEXT}
_BUNDLE["device"] = TEXT
_SWITCHING = maybe(record({"path": TEXT}))

SCHEMAS: dict[str, Schema] = {
    "Error": record({"error": {"type": "string", "description": "What is wrong, in one line."}}),
    "Bundle": record(_BUNDLE),
    "Source": record(
        {
            "name": TEXT,
            "state": _STATES,
            "error": {"type": "string", "description": "Why it failed, or empty."},
            "fps": {"type": "number", "description": "Frames a second, over the last 5 s."},
            "age_ms": {
                **maybe(NUMBER),
                "description": "Of the last result, as of now: it grows while nothing comes.",
            },
            "age_p50_ms": maybe(NUMBER),
            "age_p99_ms": maybe(NUMBER),
            "num_captured": COUNT,
            "num_delivered": COUNT,
            "num_dropped": COUNT,
            "num_corrupt": COUNT,
            "num_reconnects": COUNT,
            "num_objects": maybe(COUNT),
        }
    ),
    "Stage": record(
        {
            "name": TEXT,
            "mean_ms": maybe(NUMBER),
            "p50_ms": maybe(NUMBER),
            "p99_ms": maybe(NUMBER),
            "history_ms": {
                **listed(maybe(NUMBER)),
                "maxItems": 120,
                "description": "The mean of each second, oldest first; null without a frame.",
            },
        }
    ),
    "State": record(
        {
            "sources": listed(ref("Source")),
            "shown": TEXT,
            "stages": listed(ref("Stage")),
            "bundle": ref("Bundle"),
            "switching": _SWITCHING,
            "health": ref("Health"),
            "thresholds_version": COUNT,
            "uptime_s": NUMBER,
            "clients": COUNT,
        }
    ),
    "Health": record({"ok": TRUTH, "reason": TEXT}),
    "Card": record(
        {
            **_BUNDLE,
            "classes": listed(TEXT),
            "input": record({"width": COUNT, "height": COUNT}),
            "precisions": listed(TEXT),
            "licence": TEXT,
            "scores": table_of(NUMBER),
            "training": table_of(TEXT),
            "created": TEXT,
            "version": TEXT,
            "proof": maybe(
                record(
                    {
                        "data": TEXT,
                        "num_images": maybe(COUNT),
                        "stages": listed(
                            record(
                                {
                                    "precision": TEXT,
                                    "backend": TEXT,
                                    "verdict": TEXT,
                                    "ap": maybe(NUMBER),
                                    "reasons": listed(TEXT),
                                    "is_running": TRUTH,
                                }
                            )
                        ),
                    }
                )
            ),
        }
    ),
    "Thresholds": record(
        {
            "classes": listed(TEXT),
            "takes_score": TRUTH,
            "takes_iou": TRUTH,
            "defaults": record({"score": maybe(SHARE), "iou": maybe(SHARE)}),
            "sources": listed(
                record(
                    {
                        "source": TEXT,
                        "score": record({"default": maybe(NUMBER), "per_class": table_of(SHARE)}),
                        "iou": maybe(SHARE),
                    }
                )
            ),
        }
    ),
    "ThresholdsAsked": record(
        {
            "score": maybe(
                record(
                    {
                        "default": maybe(SHARE),
                        "per_class": maybe(table_of(SHARE)),
                        "classes": {
                            **maybe(table_of(maybe(SHARE))),
                            "description": "Changes these alone; null lets go of one.",
                        },
                    },
                    optional=("default", "per_class", "classes"),
                )
            ),
            "iou": maybe(SHARE),
            "source": {"type": ["string", "null"], "description": "A name, or null for all."},
        },
        optional=("score", "iou", "source"),
    ),
    "Bundles": record(
        {
            "bundles": listed(
                record(
                    {
                        "task": maybe(TEXT),
                        "model": maybe(TEXT),
                        "variant": maybe(TEXT),
                        "name": TEXT,
                        "path": TEXT,
                        "is_running": TRUTH,
                        "problem": maybe(TEXT),
                    }
                )
            ),
            "switching": _SWITCHING,
        }
    ),
    "BundleAsked": record({"path": TEXT}),
    "BundleTaken": record(
        {
            "bundle": ref("Bundle"),
            "is_running": {
                "type": "boolean",
                "description": "False: it takes over with the next frame.",
            },
        }
    ),
    "Sources": record(
        {
            "sources": listed(record({"name": TEXT, "is_live": TRUTH, "state": _STATES})),
            "shown": TEXT,
        }
    ),
    "SourceAsked": record({"name": TEXT}),
    "Login": record({"token": TEXT}),
}
