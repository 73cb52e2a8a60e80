"""Damaged label files either load or end in a DataError of one line; nothing else escapes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tiny_data_sets import SCENE, coco_content, write_coco, write_voc, write_yolo

from training.data import DataError, each_once, open_data

NUM_ROUNDS = 150  # 3,000 coco, 1,500 voc and 1,200 yolo rounds were clean when this was written
VALUES = [
    *(None, 0, -1, 1e400, float("nan"), "x", "", [], {}, [1], [[1]], {"a": 1}, True, 1.5, 10**30),
    *("\0", "../..", [None], [[1, 2, 3, 4, 5, 1e30]], {"size": [48, 64], "counts": "zz"}),
    {"size": [10**9, 10**9], "counts": [10**18]},
]
SCRAPS = [b"nan", b"-", b"9999999", b"\n", b"[", b":", b"  ", b"<x>", b"1e309", b"\xff"]


def open_or_refuse(root: Path) -> None:
    message = ""
    try:
        samples = list(each_once(open_data(root, "train")))
    except DataError as error:
        samples, message = [], str(error)
    assert samples or message
    assert "\n" not in message


def places(content: object) -> list[tuple]:
    """Every (container, key) of a JSON value."""
    keys = content if isinstance(content, dict) else range(len(content))
    found = [(content, key) for key in keys]
    for key in keys:
        if isinstance(content[key], dict | list):
            found += places(content[key])
    return found


def test_random_values_in_coco_json_are_survived_or_refused(tmp_path):
    path = write_coco(tmp_path)
    chance = random.Random(0)
    for _ in range(NUM_ROUNDS):
        content = coco_content(SCENE)
        content["categories"][0] |= {"keypoints": ["a"], "skeleton": []}
        for annotation in content["annotations"]:
            annotation |= {"segmentation": [[1, 1, 9, 1, 9, 9]], "keypoints": [1, 1, 2]}
        for container, key in chance.sample(places(content), chance.choice([1, 1, 2, 5])):
            container[key] = chance.choice(VALUES)
        path.write_text(json.dumps(content))
        open_or_refuse(tmp_path)


def damaged(data: bytes, chance: random.Random) -> bytes:
    result = bytearray(data)
    for _ in range(chance.choice([1, 1, 3, 10])):
        place = chance.randrange(len(result))
        kind = chance.random()
        if kind < 0.4:
            result[place] = chance.randrange(256)
        elif kind < 0.6:
            del result[place : place + chance.randrange(9)]
        elif kind < 0.8:
            result[place:place] = chance.choice(SCRAPS)
        else:
            del result[place:]
        result = result or bytearray(b"x")
    return bytes(result)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_voc, "Annotations/a.xml"),
        (write_voc, "ImageSets/Main/train.txt"),
        (write_yolo, "labels/train/d.txt"),
        (write_yolo, "data.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_random_bytes_in_text_files_are_survived_or_refused(tmp_path, write, name):
    write(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    chance = random.Random(1)
    for _ in range(NUM_ROUNDS):
        path.write_bytes(damaged(data, chance))
        open_or_refuse(tmp_path)
