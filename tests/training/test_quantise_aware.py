"""Fine-tuning for int8: the grid, where it is applied, and the run that trains through it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import Done, call
from tiny_models import frames_of, shrunk, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from training.data import open_data
from training.errors import CheckpointError
from training.loop.checkpoint import load_release, read_tensors
from training.loop.trainer import CALIBRATION_BATCHES, RunOptions, Trainer
from training.models import REGISTRY, build_model, model_variant
from training.models.base import Targets
from training.quantisation import grid
from training.quantisation.grid import choose_range, fake_quantise, fake_quantise_channels
from training.quantisation.simulation import (
    SimulatedInt8,
    calibrate,
    find_last_layers,
    freeze_batch_statistics,
)

TIE = 1e-3  # steps: values so near the middle of two may round either way in float32
SAME_LOSS = 1e-4
STEPS = 12

# --------------------------------------------------------------------------------------- the grid


def qdq_in_numpy(values: Tensor, amax: np.ndarray | float, least: int = -128) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear of ONNX in float64."""
    scale = np.asarray(amax, np.float64) / 127
    steps = values.detach().numpy().astype(np.float64) / scale
    rounded = np.clip(np.rint(steps), least, 127) * scale
    is_tie = np.abs(np.abs(steps - np.trunc(steps)) - 0.5) < TIE
    return np.where(is_tie, np.nan, rounded)


def assert_same_but_ties(found: Tensor, expected: np.ndarray) -> None:
    known = ~np.isnan(expected)
    assert known.mean() > 0.98
    np.testing.assert_allclose(found.detach().numpy()[known], expected[known], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("amax", [0.3, 2.0, 9.0], ids=str)
def test_activations_are_rounded_as_the_graph_rounds_them(amax):
    values = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0)) * 2
    assert_same_but_ties(fake_quantise(values, amax), qdq_in_numpy(values, amax))


@pytest.mark.parametrize(("axis", "shape"), [(0, (6, 4, 3, 3)), (1, (4, 6, 2, 2)), (0, (6, 9))])
def test_weights_are_rounded_to_a_grid_for_each_output_channel(axis, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    others = tuple(d for d in range(len(shape)) if d != axis)
    amax = np.abs(weight.numpy()).max(axis=others, keepdims=True)
    expected = qdq_in_numpy(weight, amax, least=-127)
    assert_same_but_ties(fake_quantise_channels(weight, axis), expected)


def test_gradient_passes_where_a_value_is_rounded_and_not_where_it_is_clipped():
    values = torch.tensor([-3.0, -1.1, -0.99, 0.0, 0.4, 0.99, 1.1, 3.0], requires_grad=True)
    (fake_quantise(values, 1.0) * torch.arange(8)).sum().backward()
    assert values.grad.tolist() == [0, 0, 2, 3, 4, 5, 0, 0]


def test_gradient_of_a_weight_passes_whole():
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    factors = torch.randn(3, 2, 3, 3)
    (fake_quantise_channels(weight, 0) * factors).sum().backward()
    assert torch.equal(weight.grad, factors)


def test_rounding_before_the_normalisation_is_rounding_the_folded_weight():
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(8, 4, 3, 3, generator=draw, dtype=torch.float64)
    gamma = torch.randn(8, generator=draw, dtype=torch.float64)  # of either sign
    variance = torch.rand(8, generator=draw, dtype=torch.float64) + 0.1
    factor = (gamma / (variance + 1e-3).sqrt())[:, None, None, None]
    folded = (weight * factor).float()
    amax = np.abs(folded.numpy()).max(axis=(1, 2, 3), keepdims=True)
    found = fake_quantise_channels(weight.float(), 0) * factor.float()
    assert_same_but_ties(found, qdq_in_numpy(folded, amax, least=-127))


def error_of(values: Tensor, amax: float) -> float:
    return float(((fake_quantise(values, amax) - values) ** 2).mean())


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "even"])
def test_chosen_range_has_nearly_the_least_error_of_all_ranges(kind):
    draw = torch.Generator().manual_seed(3)
    normal = torch.randn(20_000, generator=draw)
    heavy = normal * torch.randn(20_000, generator=draw) ** 2
    even = torch.rand(20_000, generator=draw) - 0.5
    values = {"normal": normal, "relu": normal.relu(), "heavy": heavy, "even": even}[kind]
    largest = float(values.abs().max())
    least = min(error_of(values, largest * part / 400) for part in range(8, 401))
    assert error_of(values, choose_range(values)) <= 1.02 * least


def test_range_of_heavy_tails_is_below_their_end_and_of_even_values_at_it():
    draw = torch.Generator().manual_seed(4)
    even, tail = torch.rand(50_000, generator=draw), torch.tensor([40.0])
    assert choose_range(even) == pytest.approx(1.0, rel=0.02)
    assert choose_range(torch.cat((even, tail))) < 35


def test_tensor_of_zeros_stays_zero():
    zeros = torch.zeros(2, 3, 4, 4)
    assert torch.equal(fake_quantise(zeros, choose_range(zeros)), zeros)
    assert torch.equal(fake_quantise_channels(zeros, 0), zeros)


# ----------------------------------------------------------------------------------- its placement


class Branching(nn.Module):
    """A trunk that also leaves the network, a transposed convolution, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 5, 2, 2)
        self.predict = nn.Conv2d(5, 2, 1)
        self.rows = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> dict[str, object]:
        trunk = self.trunk(images)
        twice = self.shared(self.shared(trunk).relu())
        head = self.predict(functional.interpolate(self.up(twice).relu(), scale_factor=2.0))
        return {"state": [trunk], "head": head, "rows": self.rows(twice.mean((2, 3)))}


@pytest.fixture
def branching() -> Branching:
    torch.manual_seed(0)
    model = Branching().eval()
    model.trunk[1].running_mean.uniform_(-0.3, 0.3)
    model.trunk[1].running_var.uniform_(0.5, 1.5)
    return model


def test_last_layers_are_those_whose_output_enters_no_other(branching: Branching):
    images = torch.randn(1, 3, 12, 12)
    assert find_last_layers(branching, images) == {"predict.weight", "rows.weight"}


def test_every_call_but_the_last_layers_has_a_range_of_its_own(branching: Branching):
    ranges = calibrate(branching, [torch.randn(2, 3, 12, 12)])
    assert set(ranges) == {"trunk.0.weight:0", "shared.weight:0", "shared.weight:1", "up.weight:0"}
    assert ranges["shared.weight:0"] != ranges["shared.weight:1"]


def test_transposed_convolution_of_groups_stays_float_as_in_the_export():
    up, predict = nn.ConvTranspose2d(4, 4, 2, 2, groups=2), nn.Conv2d(4, 2, 1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), up, predict)
    assert set(calibrate(model, [torch.randn(1, 3, 8, 8)])) == {"0.weight:0"}


def test_range_is_the_mean_of_what_the_batches_ask_for(branching: Branching):
    batches = [torch.randn(2, 3, 12, 12) * size for size in (1, 3)]
    alone = [calibrate(branching, [batch])["up.weight:0"] for batch in batches]
    assert calibrate(branching, batches)["up.weight:0"] == pytest.approx(sum(alone) / 2)


def test_simulation_computes_what_a_folded_int8_graph_computes(branching: Branching):
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    ranges = calibrate(branching, [images])
    with torch.no_grad(), SimulatedInt8(branching, ranges):
        found = branching(images)
    norm = branching.trunk[1]
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = branching.trunk[0].weight * factor[:, None, None, None]
    bias = (branching.trunk[0].bias - norm.running_mean) * factor + norm.bias

    def rounded(values: Tensor, amax: np.ndarray | float) -> Tensor:
        scale = np.asarray(amax, np.float64) / 127
        steps = values.detach().numpy().astype(np.float64) / scale
        return torch.from_numpy(np.clip(np.rint(steps), -128, 127) * scale)

    def weight(values: Tensor, axis: int = 0) -> Tensor:
        others = tuple(d for d in range(4) if d != axis)
        return rounded(values, np.abs(values.detach().numpy()).max(axis=others, keepdims=True))

    shared, up = branching.shared, branching.up
    kernel = weight(shared.weight)
    trunk = functional.conv2d(
        rounded(images, ranges["trunk.0.weight:0"]), weight(folded), bias.double()
    ).relu()
    once = functional.conv2d(
        rounded(trunk, ranges["shared.weight:0"]), kernel, shared.bias.double(), padding=1
    ).relu()
    twice = functional.conv2d(
        rounded(once, ranges["shared.weight:1"]), kernel, shared.bias.double(), padding=1
    )
    raised = functional.conv_transpose2d(
        rounded(twice, ranges["up.weight:0"]), weight(up.weight, 1), up.bias.double(), 2
    ).relu()
    head = functional.interpolate(raised.float(), scale_factor=2.0)
    expected = branching.predict(head), branching.rows(twice.float().mean((2, 3)))
    with torch.no_grad():
        plain = branching(images)
    for name, value in zip(("head", "rows"), expected, strict=True):
        error = (found[name] - value).abs().mean()
        assert error < 0.05 * (found[name] - plain[name]).abs().mean()


@pytest.mark.parametrize("name", REGISTRY)
def test_heads_of_a_registered_model_stay_float_and_its_backbone_does_not(name):
    model = build_model(name, shrunk(model_variant(name).spec)).eval()
    prepared = model.prepare(frames_of(1))
    last, ranges = find_last_layers(model, prepared), calibrate(model, [prepared])
    video = tuple(f"{place}." for place in getattr(model, "video_modules", ()))
    weights = {
        f"{place}.weight"
        for place, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
        and not place.startswith(video)
    }
    quantised = {site.rpartition(":")[0] for site in ranges}
    quantised = {place for place in quantised if not place.startswith(video)}
    assert last
    assert not any(place.startswith("backbone.") for place in last)
    assert quantised == weights - last


def test_as_many_products_are_simulated_as_the_export_writes(tiny_trace, tiny_checkpoint: Path):
    from export.graph.batch_norm import fold_batch_norms
    from export.precision.int8.placement import find_last_products, plan_placement

    base = copy.deepcopy(tiny_trace)
    fold_batch_norms(base)
    model, _ = load_release(tiny_checkpoint)
    prepared = model.prepare(frames_of(1))
    assert len(calibrate(model, [prepared])) == len(plan_placement(base).products)
    levels = 5  # a head's last layer is copied for each
    assert len(find_last_layers(model, prepared)) * levels == len(find_last_products(base))


def test_level_of_a_shared_head_has_its_own_range():
    model = tiny_model()
    ranges = calibrate(model, [model.prepare(frames_of(2))])
    assert len({ranges[f"scores.convs.0.weight:{level}"] for level in range(5)}) == 5


def test_model_is_left_as_it_was():
    model = tiny_model()
    prepared, before = model.prepare(frames_of(2)), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(prepared).logits
        with SimulatedInt8(model, calibrate(model, [prepared])):
            simulated = model(prepared).logits
            assert torch.equal(model(prepared).logits, simulated)
        assert torch.equal(model(prepared).logits, expected)
    assert not torch.equal(simulated, expected)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_frozen_statistics_survive_a_pass_in_training_mode():
    model = tiny_model().train()
    freeze_batch_statistics(model)
    before = {key: value.clone() for key, value in model.named_buffers()}
    model(model.prepare(frames_of(2)))
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())


# ------------------------------------------------------------------------------------- its training


def fine_tuned(
    model: nn.Module,
    targets: Targets,
    ranges: dict[str, float] | None,
    *,
    steps: int = 20,
    lr: float = 1e-3,
) -> nn.Module:
    """Steps on one batch, with simulated int8 where there are ranges."""
    model = copy.deepcopy(model).train()
    freeze_batch_statistics(model)
    prepared = model.prepare(frames_of(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        with SimulatedInt8(model, ranges or {}):
            losses = model.loss(model(prepared), targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    return model.eval()


def test_twenty_steps_through_the_grid_beat_as_many_beside_it(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    monkeypatch.setattr(grid, "LEVELS", 3)  # a coarse grid, whose harm stands out at once
    model = tiny_model()
    prepared = model.prepare(frames_of(2))
    targets = Targets(
        torch.tensor([[[10.0, 10, 40, 40]], [[30.0, 5, 90, 60]]]),
        torch.tensor([[0], [2]]),
        torch.zeros(2, 1, dtype=torch.bool),
    )
    model = fine_tuned(model, targets, None, steps=60, lr=2e-3)  # learnt: only the grid harms
    ranges = calibrate(model, [prepared])

    @torch.no_grad()
    def simulated_loss(tuned: nn.Module) -> float:
        with SimulatedInt8(tuned, ranges):
            losses = tuned.loss(tuned(prepared), targets)
        return float(sum(losses.values()))

    beside = simulated_loss(fine_tuned(model, targets, None))
    through = simulated_loss(fine_tuned(model, targets, ranges))
    assert through < 0.8 * min(beside, simulated_loss(model))


def arguments(data: Path, init: Path, out: Path) -> list[str]:
    options = {
        "--model": "retinanet", "--data": data, "--init": init, "--out": out,
        "--steps": STEPS, "--batch": 2, "--workers": 0, "--save-every": 4,
    }  # fmt: skip
    return [str(part) for pair in options.items() for part in pair] + ["--quantise-aware"]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tuned(discs: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantise-aware run from a trained checkpoint."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    done = call("training.train", *arguments(discs, tiny_checkpoint, out))
    assert done.returncode == 0, done.stderr
    return out


def test_tuned_checkpoint_is_a_plain_one_of_the_same_model(tuned: Path, tiny_checkpoint: Path):
    model, header = load_release(tuned / "best.safetensors", "retinanet")
    before, _ = load_release(tiny_checkpoint)
    assert model.spec == before.spec
    assert model.state_dict().keys() == read_tensors(tuned / "best.safetensors").keys()
    assert header["training"]["init"] == tiny_checkpoint.name


def test_run_trains_weights_and_keeps_batch_statistics(tuned: Path, tiny_checkpoint: Path):
    state, before = read_tensors(tuned / "last.safetensors"), read_tensors(tiny_checkpoint)
    statistics = [key for key in before if "running_" in key]
    assert statistics
    assert all(torch.equal(state[f"model.{key}"], before[key]) for key in statistics)
    key = "pyramid.outputs.0.0.weight"
    assert not torch.equal(state[f"model.{key}"], before[key].float())


def interrupted(monkeypatch: pytest.MonkeyPatch, command: list[str], at: int) -> Done:
    """A run that gets Ctrl-C when it trains on the sample of a number."""
    feed = importlib.import_module("training.loop.feed")
    load = feed.NumberedSamples.__getitem__

    def load_and_stop(self, number: int):
        if number == at:
            signal.raise_signal(signal.SIGINT)
        return load(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(feed.NumberedSamples, "__getitem__", load_and_stop)
        return call("training.train", *command)


def test_resumed_run_takes_the_steps_of_the_uninterrupted_one(
    discs: Path,
    tuned: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    command = arguments(discs, tiny_checkpoint, tmp_path)
    after_calibration = 2 * CALIBRATION_BATCHES + 2
    assert interrupted(monkeypatch, command, at=after_calibration).returncode == 130
    assert len(losses(tmp_path)) < STEPS
    done = call("training.train", *command, "--resume")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == pytest.approx(losses(tuned), abs=SAME_LOSS)


def test_run_is_not_resumed_without_the_flag(discs: Path, tuned: Path, tiny_checkpoint: Path):
    source = open_data(str(discs), "train")
    recipe = dataclasses.replace(model_variant("retinanet").recipe, steps=STEPS, batch=2)
    options = RunOptions(name="retinanet", out=tuned, precision="no", workers=0)
    trainer = Trainer(load_release(tiny_checkpoint)[0], recipe, source, None, options, {})
    with pytest.raises(CheckpointError, match="a run with --quantise-aware"):
        trainer.resume()


@pytest.mark.parametrize(
    "changed",
    [("--init", "auto"), ("--init", "scratch"), ("--size", "96x96"), ("--variant", "small")],
    ids=" ".join,
)
def test_flag_without_a_checkpoint_or_with_another_network_is_refused(
    discs: Path, tiny_checkpoint: Path, tmp_path: Path, changed: tuple[str, str]
):
    out = tmp_path / "run"
    done = call("training.train", *arguments(discs, tiny_checkpoint, out), *changed)
    assert done.returncode == 2
    assert "adapts a trained checkpoint as it is" in done.stderr
    assert not out.exists()


def test_checkpoint_of_other_classes_is_refused(tiny_checkpoint: Path, tmp_path: Path):
    done = call("training.train", *arguments(Path("street"), tiny_checkpoint, tmp_path / "run"))
    assert done.returncode == 2
    assert "Give the data that it was trained on" in done.stderr


def test_run_is_a_tenth_of_the_recipe_at_a_tenth_of_its_rate():
    from training.train import shortened

    recipe = model_variant("retinanet").recipe
    short = shortened(recipe)
    assert short.steps == round(recipe.steps / 10)
    assert short.lr == pytest.approx(recipe.lr / 10)
    assert short.validate_every <= short.steps
