"""Run a model as its int8 graph will run, without changing the model.

Nothing is added to the model: its layers are met where they call torch, so weights, averages and
checkpoints stay plain. A layer is any 2-D convolution, transposed convolution or linear map whose
weight is a parameter; a layer that runs several times in one pass (a head shared by levels) has a
range for each of them, as its copies have in the graph.

The graph also rounds the inputs of residual sums, and tensors that are concatenated share a scale.
Neither is simulated: both were worth less than 1 dB of signal to noise on small detectors.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from training.quantisation.grid import choose_range, fake_quantise, fake_quantise_channels

OUTPUT_AXIS: dict[Callable[..., Tensor], int] = {
    functional.conv2d: 0,
    functional.conv_transpose2d: 1,
    functional.linear: 0,
}


class LayerCalls(TorchFunctionMode):
    """While entered, meets every call of a layer of `model`; a subclass says what to do with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._calls: Counter[str] = Counter()

    def __enter__(self) -> LayerCalls:
        self._names = {id(p): name for name, p in self.model.named_parameters()}
        self._hook = self.model.register_forward_pre_hook(lambda *_: self._calls.clear())
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = self._call_layer if func in OUTPUT_AXIS else _call_plainly
        return call(func, *args, **(kwargs or {}))

    def _call_layer(
        self, func: Any, input: Tensor, weight: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        name = self._names.get(id(weight))
        is_transposed = func is functional.conv_transpose2d
        groups = named.get("groups", rest[4] if len(rest) > 4 else 1) if is_transposed else 1
        if name is None or groups > 1:  # no constant of the graph, or no axis of output channels
            return func(input, weight, *rest, **named)
        site = f"{name}:{self._calls[name]}"
        self._calls[name] += 1
        input, weight = self.enter_layer(site, input, weight, OUTPUT_AXIS[func])
        return self.leave_layer(name, func(input, weight, *rest, **named))

    def enter_layer(
        self, site: str, input: Tensor, weight: Tensor, axis: int
    ) -> tuple[Tensor, Tensor]:
        """What the layer is to compute with; `site` is its weight's name and the call's number."""
        return input, weight

    def leave_layer(self, name: str, output: Tensor) -> Tensor:
        """What is to become of a layer's output."""
        return output


def _call_plainly(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


class _Outputs(LayerCalls):
    """Remembers which layer made which node of the autograd graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.layer_of: dict[Any, str] = {}

    def leave_layer(self, name: str, output: Tensor) -> Tensor:
        self.layer_of[output.grad_fn] = name
        return output


def find_last_layers(model: nn.Module, prepared: Tensor) -> set[str]:
    """Names of the weights of the layers whose output enters no further layer.

    Args:
        prepared: (B, 3, H, W) float32, the network's input.
    """
    outputs = _Outputs(model)
    with torch.enable_grad(), outputs:
        kept = model(prepared.detach().requires_grad_())  # keeps the graph alive
    has_successor: set[str] = set()
    for node in outputs.layer_of:
        todo, seen = [node], {node}
        while todo:
            for before, _ in todo.pop().next_functions:
                if before is None or before in seen:
                    continue
                seen.add(before)
                if before in outputs.layer_of:
                    has_successor.add(outputs.layer_of[before])
                else:
                    todo.append(before)
    del kept
    return set(outputs.layer_of.values()) - has_successor


class _Observed(LayerCalls):
    """Collects a range of every layer's input, one for each pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.ranges: dict[str, list[float]] = defaultdict(list)

    def enter_layer(
        self, site: str, input: Tensor, weight: Tensor, axis: int
    ) -> tuple[Tensor, Tensor]:
        self.ranges[site].append(choose_range(input))
        return input, weight


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Activation ranges of the layers that the int8 graph quantises.

    The range of an input is the mean over batches of the one with the least squared error. The
    last layers stay float, as in the export, and have none.

    Args:
        model: its batch statistics are used, not changed.
        batches: (B, 3, H, W) float32 each, at least one; the network's input.

    Returns:
        Call of a layer ("name of its weight:number of the call in a pass") -> largest magnitude.
    """
    was_training = model.training
    model.eval()
    observed = _Observed(model)
    last: set[str] | None = None
    for prepared in batches:
        if last is None:
            last = find_last_layers(model, prepared[:1])
        with observed:
            model(prepared)
    model.train(was_training)
    return {
        site: sum(found) / len(found)
        for site, found in observed.ranges.items()
        if site.rpartition(":")[0] not in (last or set())
    }


class SimulatedInt8(LayerCalls):
    """While entered, `model` computes with int8 weights and activations.

    Args:
        ranges: from `calibrate`; calls without one stay float.
    """

    def __init__(self, model: nn.Module, ranges: dict[str, float]) -> None:
        super().__init__(model)
        self.ranges = ranges

    def enter_layer(
        self, site: str, input: Tensor, weight: Tensor, axis: int
    ) -> tuple[Tensor, Tensor]:
        if site not in self.ranges:
            return input, weight
        return fake_quantise(input, self.ranges[site]), fake_quantise_channels(weight, axis)


def freeze_batch_statistics(model: nn.Module) -> None:
    """Normalise by the running statistics, which the export folds, also while training."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
