"""What really computes: layers and multiply-adds by precision, held against what was asked for.

A precision is a wish until it is looked at. A reader (`openvino_layers.py`, `inspector_layers.py`,
and `export/graph/types_audit.py` for ONNX files) turns what a backend says of a compiled graph
into `Layer`s; `judge` counts them and holds them against `EXPECTED`, the table of what each
precision means on each backend.

The tail is selection and suppression, and what lies between these and the outputs without
crossing a convolution or matrix product: decode, scores, IoU. It is float32 in every precision.
So is a product behind a selection, such as the masks of the kept rows: where it is float32 it does
not count against the share that was asked for.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.contract.bundle import Verdict
from runtime.contract.errors import EngineError

FLOATS = ("fp32", "tf32", "fp16", "bf16")
COUNTED = (*FLOATS, "int8")
SELECTION = ("KestrelSelect", "KestrelNms")  # in the names of what they became
_RESIZES = ("Interpolate", "Resize")  # OpenVINO computes what feeds them in bf16, as for products
_ROUNDING = 1e-9
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """One step of a compiled graph.

    Attributes:
        name: as the backend calls it.
        kind: its type, in the backend's words.
        precision: one of COUNTED; empty where it moves data, or computes integers or truth values.
        macs: multiply-adds of a convolution or matrix product; None where its size is unknown;
            0 of all else.
        reads, writes: names of tensors. A name may be written again later.
        is_selection: a TopK, or a part of KestrelSelect or KestrelNms.
    """

    name: str
    kind: str
    precision: str
    macs: int | None = 0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    is_selection: bool = False

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution or matrix product."""
        return self.macs is None or self.macs > 0


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a precision means on a backend.

    Attributes:
        meaning: for people.
        computes: precisions that count as what was asked for; empty asks for none.
        least: share of multiply-adds (0..1) that run in these.
        follows: precisions that must be built where the file has them.
        of_file: share (0..1) of the file's multiply-adds in such a precision that must be built.
        tail: precisions that the tail may have.
    """

    meaning: str
    computes: tuple[str, ...] = ()
    least: float = 0.0
    follows: tuple[str, ...] = ()
    of_file: float = 0.95
    tail: tuple[str, ...] = ("fp32",)


_HALF_TRUNK = 0.95  # the first convolution and whatever overflows may stay float32
_INT8_LEAST = 0.5  # heads' last convolutions stay higher; with many classes these are large

# Backend (and OpenVINO's option inference_precision) -> precision -> what it means there.
# "onnx" is what the file itself must say.
EXPECTED: dict[str, dict[str, Expectation]] = {
    "onnx": {
        "fp32": Expectation("float32 throughout", ("fp32",), 1.0),
        "fp16": Expectation("fp16 trunk and heads, float32 tail", ("fp16",), _HALF_TRUNK),
        "int8": Expectation("int8 convolutions, float32 tail", ("int8",), _INT8_LEAST),
        "mixed": Expectation("fp16 and int8 where they cost nothing, float32 tail"),
    },
    "onnxruntime": {
        "fp32": Expectation("float32 throughout", ("fp32",), 1.0),
        "fp16": Expectation(
            "fp16 weights, computed in float32: a CPU never computes in fp16", ("fp32",), 1.0
        ),
        "int8": Expectation(
            "int8 convolutions with float32 between them", ("int8",), _INT8_LEAST, ("int8",), 0.5
        ),
        "mixed": Expectation(
            "as the file says, fp16 computed in float32", follows=("int8",), of_file=0.5
        ),
    },
    "openvino f32": {
        "fp32": Expectation("float32 throughout, asked for by hint", ("fp32",), 1.0),
        "fp16": Expectation("fp16 weights, computed in float32", ("fp32",), 1.0),
        "int8": Expectation(
            "int8 convolutions, float32 between them", ("int8",), _INT8_LEAST, ("int8",)
        ),
        "mixed": Expectation("as the file says, fp16 computed in float32", follows=("int8",)),
    },
    "openvino bf16": {
        "fp32": Expectation("bf16 trunk and heads, float32 tail", ("bf16",), _HALF_TRUNK),
        "fp16": Expectation("fp16 weights, computed in bf16", ("bf16",), _HALF_TRUNK),
        "int8": Expectation(
            "int8 convolutions, bf16 between them", ("int8",), _INT8_LEAST, ("int8",)
        ),
        "mixed": Expectation("as the file says, fp16 computed in bf16", follows=("int8",)),
    },
    "openvino auto": {
        "fp32": Expectation("float32, or bf16 where the CPU has it", ("fp32", "bf16"), 1.0),
        "fp16": Expectation("computed in float32 or bf16", ("fp32", "bf16"), 1.0),
        "int8": Expectation(
            "int8 convolutions, float32 or bf16 between them", ("int8",), _INT8_LEAST, ("int8",)
        ),
        "mixed": Expectation("as the file says, fp16 in float32 or bf16", follows=("int8",)),
    },
    "tensorrt": {
        "fp32": Expectation("float32, TF32 off", ("fp32",), 1.0),
        "fp16": Expectation("fp16 trunk and heads, float32 tail", ("fp16",), _HALF_TRUNK),
        "int8": Expectation(
            "int8 convolutions, the rest higher, float32 tail", ("int8",), _INT8_LEAST, ("int8",)
        ),
        "mixed": Expectation("as the file says", follows=("fp16", "int8")),
    },
    "tensorrt_rtx": {
        "fp32": Expectation("float32, TF32 off", ("fp32",), 1.0),
        "fp16": Expectation("fp16 trunk and heads, float32 tail", ("fp16",), _HALF_TRUNK),
        "int8": Expectation("int8 or fp16: made for 16-bit kernels, int8 is not promised"),
        "mixed": Expectation("as the file says, int8 not promised", follows=("fp16",)),
    },
}


@dataclass(frozen=True, slots=True)
class Audit:
    """What computes in which precision, and whether that is what was asked for.

    Attributes:
        backend: a key of EXPECTED. precision: what was asked for.
        verdict: "not run" where it could not be looked at; `reasons` says why.
        reasons: of a verdict other than "pass", a sentence each.
        num_layers: precision -> how many layers compute in it; those that move data not counted.
        macs: precision -> multiply-adds of one inference of the batch that was looked at.
        num_unsized: convolutions and matrix products whose size the backend does not tell.
        tail: precision -> how many layers of the tail compute in it.
        layers: all, in the order they run. in_tail: places of the tail's in `layers`.
        behind: places of the layers that depend on a selection.
    """

    backend: str
    precision: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    num_layers: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    num_unsized: int = 0
    tail: dict[str, int] = field(default_factory=dict)
    layers: tuple[Layer, ...] = field(default=(), repr=False)
    in_tail: frozenset[int] = field(default=frozenset(), repr=False)
    behind: frozenset[int] = field(default=frozenset(), repr=False)

    @property
    def shares(self) -> dict[str, float]:
        """Precision -> share (0..1) of the multiply-adds.

        Where sizes are not known it is the share of convolutions and matrix products, and where
        there are none of these, of all layers that compute.
        """
        weights: Mapping[str, int] = self.macs
        if self.num_unsized:
            weights = Counter(layer.precision for layer in self.layers if layer.is_product)
        weights = weights or self.num_layers
        total = sum(weights.values())
        return {name: count / total for name, count in weights.items()} if total else {}

    @property
    def late_share(self) -> float:
        """Share (0..1) of the products, as of `shares`, that are float32 behind a selection."""
        late = [self.layers[place] for place in self.behind]
        products = [row for row in late if row.is_product and row.precision == "fp32"]
        if self.num_unsized:
            return len(products) / sum(layer.is_product for layer in self.layers)
        return sum(row.macs or 0 for row in products) / max(1, sum(self.macs.values()))

    @property
    def unit(self) -> str:
        """What `shares` are shares of, for people."""
        if self.num_unsized:
            return "convolutions and matrix products"
        return "multiply-adds" if self.macs else "computing layers"

    def to_json(self, *, with_layers: bool = False) -> dict[str, Any]:
        """As JSON takes it."""
        document: dict[str, Any] = {
            "backend": self.backend,
            "precision": self.precision,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
        }
        if self.layers:
            document |= {
                "layers": self.num_layers,
                "macs": self.macs,
                "shares": {name: round(share, 4) for name, share in self.shares.items()},
                "tail": self.tail,
            }
        if with_layers:
            document["all_layers"] = [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "precision": layer.precision,
                    "macs": layer.macs,
                    "is_tail": place in self.in_tail,
                }
                for place, layer in enumerate(self.layers)
            ]
        return document


def expectation(backend: str, precision: str) -> Expectation:
    """The table's entry.

    Raises:
        EngineError: the table has no such backend or precision.
    """
    if backend not in EXPECTED or precision not in EXPECTED[backend]:
        raise EngineError(
            f"no expectation for precision {precision!r} on {backend!r}; there are "
            f"{', '.join(EXPECTED)} with {', '.join(EXPECTED['onnx'])}. Name one of these."
        )
    return EXPECTED[backend][precision]


def not_run(backend: str, precision: str, reason: str) -> Audit:
    """The audit of what cannot be looked at here."""
    return Audit(backend, precision, "not run", (reason,))


def judge(
    layers: Iterable[Layer],
    outputs: Iterable[str],
    *,
    backend: str,
    precision: str,
    file_shares: Mapping[str, float] | None = None,
) -> Audit:
    """Count layers and hold the counts against the table.

    Args:
        layers: in the order they run.
        outputs: names of the tensors that leave the graph.
        backend: a key of EXPECTED.
        precision: what was asked for.
        file_shares: `Audit.shares` of the ONNX file, which what was built must follow.

    Raises:
        EngineError: the table has no such backend or precision.
    """
    expected = expectation(backend, precision)
    rows = tuple(layers)
    behind = find_behind(rows)
    tail = find_tail(rows, outputs, behind)
    counted = [row for row in rows if row.precision in COUNTED]
    macs: Counter[str] = Counter()
    for row in counted:
        if row.macs:
            macs[row.precision] += row.macs
    audit = Audit(
        backend,
        precision,
        "pass",
        num_layers=dict(Counter(row.precision for row in counted)),
        macs=dict(macs),
        num_unsized=sum(row.macs is None for row in counted),
        tail=dict(Counter(rows[place].precision for place in sorted(tail))),
        layers=rows,
        in_tail=frozenset(tail),
        behind=frozenset(behind),
    )
    if not counted:
        return not_run(backend, precision, "no layer says in which precision it computes")
    reasons = tuple(_find_faults(audit, expected, file_shares or {}))
    return dataclasses.replace(audit, verdict="fail", reasons=reasons) if reasons else audit


def find_behind(layers: Sequence[Layer]) -> set[int]:
    """Places of the layers that select, and of those that depend on one that does."""
    chosen: set[str] = set()
    behind = set()
    for place, layer in enumerate(layers):
        is_behind = layer.is_selection or bool(chosen & {*layer.reads})
        chosen = chosen | {*layer.writes} if is_behind else chosen - {*layer.writes}
        if is_behind:
            behind.add(place)
    return behind


def find_tail(layers: Sequence[Layer], outputs: Iterable[str], behind: Container[int]) -> set[int]:
    """Places of the layers that select, and of those that compute between that and an output.

    Args:
        layers: in the order they run.
        outputs: names of the tensors that leave the graph.
        behind: of `find_behind`.
    """
    needed = {*outputs}
    counted = {place for place, layer in enumerate(layers) if layer.precision in COUNTED}
    tail = {p for p in counted if layers[p].is_selection and not layers[p].is_product}
    for place in range(len(layers) - 1, -1, -1):
        layer = layers[place]
        is_needed = bool(needed & {*layer.writes})
        is_barrier = layer.is_product or layer.kind in _RESIZES
        if is_needed and not is_barrier:
            needed |= {*layer.reads}
            tail |= {place} & counted if place in behind else set()
    return tail


def _find_faults(
    audit: Audit, expected: Expectation, file_shares: Mapping[str, float]
) -> Iterable[str]:
    shares = audit.shares
    found = ", ".join(
        f"{100 * share:.1f} % {name}" for name, share in sorted(shares.items(), key=lambda s: -s[1])
    )
    share = sum(shares.get(name, 0.0) for name in expected.computes)
    late = 0.0 if "fp32" in expected.computes else audit.late_share
    if expected.computes and share < expected.least * (1 - late) - _ROUNDING:
        yield (
            f"asked for {audit.precision}, not built: {100 * share:.1f} % of {audit.unit} in "
            f"{' or '.join(expected.computes)}, expected at least {100 * expected.least:.0f} % "
            f"({expected.meaning}); found {found}"
        )
    for name in expected.follows:
        planned = file_shares.get(name, 0.0)
        built = shares.get(name, 0.0)
        if built < expected.of_file * planned - _ROUNDING:
            yield (
                f"{100 * built:.1f} % of {audit.unit} in {name}, where the file has "
                f"{100 * planned:.1f} % and at least {100 * expected.of_file:.0f} % of that was "
                "expected"
            )
    low = [
        audit.layers[place]
        for place in sorted(audit.in_tail)
        if audit.layers[place].precision not in expected.tail
    ]
    if low:
        named = ", ".join(f"{row.name} ({row.precision})" for row in low[:_MOST_NAMED])
        yield (
            f"{len(low)} of {len(audit.in_tail)} layers of selection and what follows it are not "
            f"{' or '.join(expected.tail)}: {named}{', ...' if len(low) > _MOST_NAMED else ''}; "
            "coordinates, scores, IoU and top-k are float32 in every precision"
        )
