"""Published files load where our own checkpoints do."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import torch
from calling import call
from published_weights import flat_tensors
from safetensors.torch import save_file

from training.data.coco_names import CATEGORY_IDS, CLASSES
from training.errors import CheckpointError
from training.loop.checkpoint import load_release

SMALL = "yolact_edge_mobilenetv2"


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the published code saves it."""
    path = tmp_path_factory.mktemp("downloaded") / f"{SMALL}_54_800000.pth"
    torch.save(flat_tensors(SMALL), path)
    return path


def test_published_file_loads_with_cocos_classes_and_says_where_it_came_from(downloaded: Path):
    model, header = load_release(downloaded, "yolact")
    assert not model.training
    assert (model.spec.variant, model.spec.size_hw) == ("mobilenetv2", (550, 550))
    assert (model.spec.classes, model.spec.category_ids) == (CLASSES, CATEGORY_IDS)
    training = header["training"]
    assert (training["source"], training["file"]) == ("published", downloaded.name)
    assert training["sha256"] == hashlib.sha256(downloaded.read_bytes()).hexdigest()
    assert "MIT" in training["licence"]
    assert header["scores"] == {}


def test_safetensors_of_published_names_load_as_the_pickled_ones(downloaded: Path, tmp_path: Path):
    path = tmp_path / "converted.safetensors"
    save_file({key: value.contiguous() for key, value in flat_tensors(SMALL).items()}, path)
    ours, theirs = load_release(path, "yolact")[0], load_release(downloaded)[0]
    assert ours.spec == theirs.spec
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


@pytest.mark.parametrize(
    ("name", "size"), [("yolact_im700_54_800000", 700), ("yolact_base_54_800000", 550)]
)
def test_size_of_the_input_is_told_by_the_files_name(name, size, downloaded: Path, tmp_path: Path):
    path = tmp_path / f"{name}.pth"
    path.symlink_to(downloaded)
    assert load_release(path)[0].spec.size_hw == (size, size)


def test_published_file_is_refused_as_another_model(downloaded: Path):
    with pytest.raises(CheckpointError, match=r"of model 'yolact'; expected 'retinanet'.*--model"):
        load_release(downloaded, "retinanet")


def test_scores_are_not_recorded_in_a_published_file(downloaded: Path):
    before = downloaded.read_bytes()
    done = call("training.score", "--checkpoint", downloaded, "--record")
    assert done.returncode == 2
    assert "Leave --record out" in done.stderr
    assert downloaded.read_bytes() == before


class Touch:
    """An object whose unpickling would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path):
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"proto_net.0.weight": Touch(trace)}, path)
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        load_release(path, "yolact")
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_tensors_of_other_names_are_refused_by_naming_them(suffix, tmp_path: Path):
    path = tmp_path / f"other{suffix}"
    torch.save({f"module.layer{i}.weight": torch.zeros(2) for i in range(3)}, path)
    with pytest.raises(CheckpointError, match=rf"other{suffix}.*module\.layer0\.weight.*YOLACT"):
        load_release(path, "yolact")


@pytest.mark.parametrize("is_zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_file_ends_in_one_sentence_wherever_it_is_damaged(is_zipped, tmp_path: Path):
    path, draw = tmp_path / "damaged.pth", random.Random(0)
    tensors = {f"layer{i}.weight": torch.randn(5, 3) for i in range(6)}
    torch.save(tensors, path, _use_new_zipfile_serialization=is_zipped)
    whole = path.read_bytes()
    spoilt = [whole[: len(whole) * part // 40] for part in range(40)]
    for _ in range(60):
        changed = bytearray(whole)
        for _ in range(5):
            changed[draw.randrange(len(whole))] = draw.randrange(256)
        spoilt.append(bytes(changed))
    for content in spoilt:
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_release(path, "yolact")
        assert "\n" not in str(caught.value)
