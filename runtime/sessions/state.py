"""What a key frame leaves for the frames after it: state, held together when a bundle is loaded.

The manifest says which output feeds which input; types and shapes are the graphs' own. A stream
has the state of its last key frame, of that frame's batch size, and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from runtime.contract.errors import SessionError

# A tensor's NumPy type and sides; -1 for the side that the batch decides.
Signature: TypeAlias = tuple[str, tuple[int, ...]]
Signatures: TypeAlias = Mapping[str, Mapping[str, Signature]]  # of each graph's tensors, by name


def check_state(state: Mapping[str, str], outputs: Signatures, inputs: Signatures) -> None:
    """Refuse graphs whose state does not go from one to the other.

    Args:
        state: the manifest's: output name -> input name.
        outputs, inputs: of every graph that was loaded, as the backend reads them.

    Raises:
        SessionError: no graph gives or takes it, or giver and taker differ in type or shape.
    """
    for given, taken in state.items():
        givers = [(graph, outputs[graph][given]) for graph in outputs if given in outputs[graph]]
        takers = [(graph, inputs[graph][taken]) for graph in inputs if taken in inputs[graph]]
        for found, what in ((givers, f"gives {given!r}"), (takers, f"takes {taken!r}")):
            if not found:
                raise SessionError(
                    f"the manifest passes state {given!r} on as {taken!r}, and no graph {what}; "
                    f"there are {', '.join(outputs)}. Export again."
                )
        for giver, left in givers:
            for taker, right in takers:
                if left != right:
                    raise SessionError(
                        f"state {given!r} leaves graph {giver!r} as {_describe(left)} and enters "
                        f"graph {taker!r} as {_describe(right)}; expected the same. Export again."
                    )


def refuse_state(graph: str, name: str, batch: int, found: int | None) -> SessionError:
    """The error for a state that a graph cannot take.

    Args:
        graph: which graph needs it.
        name: of the input.
        batch: of the frames that were fed.
        found: batch size of the last key frame; None where there was none.
    """
    if found is None:
        return SessionError(
            f"graph {graph!r} needs the state {name!r}, which no frame has set yet. "
            "Run the graph 'key' first."
        )
    return SessionError(
        f"graph {graph!r} was fed a batch of {batch}, and the last key frame's state {name!r} has "
        f"a batch of {found}. Run the graph 'key' first on frames of that batch."
    )


def _describe(signature: Signature) -> str:
    dtype, shape = signature
    return f"{dtype} ({', '.join('B' if side < 0 else str(side) for side in shape)})"
