"""Banks of textures, painted once per process from fixed seeds: sky, walls, ground, noise."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

FACADE_PX = 256
NUM_FACADES, NUM_SKIES, NUM_SKYLINES = 36, 16, 6
TILE_PX = 512
SKY_KINDS = ("clear", "broken", "overcast", "sunset", "dusk")


def fractal_noise(
    rng: np.random.Generator, size_hw: tuple[int, int], *, base: int, octaves: int
) -> np.ndarray:
    """(H, W) float32 in about 0..1: random grids of base, 2 base ... cells a side, summed."""
    total = np.zeros(size_hw, np.float32)
    weight, norm = 1.0, 0.0
    for octave in range(octaves):
        cells = base << octave
        grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
        total += weight * cv2.resize(grid, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
        norm += weight
        weight *= 0.55
    return np.clip(total / norm, 0.0, 1.0)


def _gradient(top: tuple, bottom: tuple, size_hw: tuple[int, int]) -> np.ndarray:
    part = np.linspace(0.0, 1.0, size_hw[0], dtype=np.float32)[:, None, None]
    rows = np.asarray(top, np.float32) * (1 - part) + np.asarray(bottom, np.float32) * part
    return np.repeat(rows, size_hw[1], axis=1)


@lru_cache(maxsize=1)
def skies() -> list[tuple[str, np.ndarray]]:
    """(kind, (320, 1024, 3) uint8) pictures; the last row lies at the horizon."""
    rng = np.random.default_rng(901)
    tops = ((205, 140, 70), (210, 155, 95), (185, 180, 175), (150, 105, 95), (85, 55, 40))
    bottoms = ((240, 222, 200), (238, 226, 210), (212, 208, 204), (130, 180, 245), (140, 110, 130))
    whites = ((250, 248, 245), (248, 246, 244), (225, 223, 221), (150, 170, 235), (120, 100, 105))
    bank = []
    for number in range(NUM_SKIES):
        kind = number % len(SKY_KINDS)
        sky = _gradient(tops[kind], bottoms[kind], (320, 1024))
        noise = fractal_noise(rng, (320, 1024), base=4, octaves=6)
        low, soft = ((0.62, 5), (0.45, 5), (0.25, 2.2), (0.48, 3.5), (0.42, 3))[kind]
        cover = np.clip((noise - low) * soft, 0.0, 0.95)[..., None]
        under = np.clip(1.15 - 0.35 * noise[..., None], 0, 1.1)
        sky = sky * (1 - cover) + np.asarray(whites[kind], np.float32) * cover * under
        bank.append((SKY_KINDS[kind], np.clip(sky, 0, 255).astype(np.uint8)))
    return bank


@lru_cache(maxsize=1)
def skylines() -> list[np.ndarray]:
    """(96, 1536, 4) uint8 premultiplied strips of far buildings, hills and trees."""
    rng = np.random.default_rng(902)
    bank = []
    for number in range(NUM_SKYLINES):
        strip = np.zeros((96, 1536, 4), np.uint8)
        far = np.array((190, 180, 172)) if number % 2 else np.array((165, 168, 150))
        hills = fractal_noise(rng, (1, 1536), base=6, octaves=4)[0]
        for layer in range(2):
            colour = far * (0.92 - 0.17 * layer)
            tops = 58 - hills * 40 + 16 * layer + rng.normal(0, 1.2, 1536)
            points = np.stack([np.arange(1536), tops], axis=1)
            ring = np.concatenate([points, [[1536, 97], [0, 97]]]).astype(np.int32)
            cv2.fillPoly(strip, [ring], (*colour.tolist(), 255), cv2.LINE_AA)
            hills = np.roll(hills, 311)
        for _ in range(int(rng.integers(8, 34))):
            x, w = int(rng.integers(0, 1500)), int(rng.integers(10, 46))
            top = int(rng.integers(14, 72))
            colour = (far * rng.uniform(0.62, 0.98)).tolist()
            cv2.rectangle(strip, (x, top), (x + w, 96), (*colour, 255), -1)
            for y in range(top + 4, 92, 6):
                cv2.line(strip, (x + 2, y), (x + w - 2, y), (*[c * 0.86 for c in colour], 255), 1)
        bank.append(strip)
    return bank


WALLS = (
    (70, 85, 150), (60, 70, 125), (150, 190, 215), (175, 205, 225), (165, 165, 165),
    (120, 125, 135), (195, 205, 200), (150, 160, 190), (110, 140, 175), (205, 215, 225),
    (140, 120, 105), (90, 95, 110), (130, 165, 160), (185, 170, 205),
)  # fmt: skip


def _paint_wall(rng: np.random.Generator) -> np.ndarray:
    size = FACADE_PX
    colour = np.asarray(WALLS[rng.integers(len(WALLS))], np.float32) * rng.uniform(0.8, 1.1)
    wall = np.broadcast_to(colour, (size, size, 3)).copy()
    if rng.random() < 0.6:  # bricks
        bricks = rng.normal(1.0, 0.07, (size // 4, size // 8)).astype(np.float32)
        bricks = cv2.resize(bricks, (size, size), interpolation=cv2.INTER_NEAREST)
        rows = (np.arange(size) // 4) % 2 == 1
        bricks[rows] = np.roll(bricks[rows], 4, axis=1)
        bricks[::4] *= 1.10
        wall *= bricks[..., None]
    stains = fractal_noise(rng, (size, size), base=4, octaves=5)
    wall *= (0.82 + 0.36 * stains)[..., None]
    return np.clip(wall, 0, 255).astype(np.uint8)


def _paint_window(
    wall: np.ndarray, lit: np.ndarray, box: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    x1, y1, x2, y2 = box
    frame = (235, 238, 240) if rng.random() < 0.6 else (60, 60, 70)
    glass = np.array((120, 100, 80), np.float32) * rng.uniform(0.45, 1.3)
    cv2.rectangle(wall, (x1 - 1, y1 - 1), (x2 + 1, y2 + 1), frame, -1)
    pane = wall[y1:y2, x1:x2]
    slope = np.linspace(1.35, 0.75, max(1, y2 - y1), dtype=np.float32)[:, None, None]
    pane[:] = np.clip(glass * slope, 0, 255).astype(np.uint8)
    look = rng.random()
    if look < 0.25:  # curtains
        cv2.rectangle(wall, (x1, y1), (x1 + max(1, (x2 - x1) // 4), y2 - 1), (190, 200, 205), -1)
    elif look < 0.4:  # reflected sky
        corner = np.array([[x1, y1], [x2 - 1, y1], [x1, y2 - 1]])
        cv2.fillPoly(wall, [corner], (glass * 1.6).clip(0, 255).tolist())
    if rng.random() < 0.3:
        cv2.rectangle(lit, (x1, y1), (x2 - 1, y2 - 1), 255, -1)
    middle = (x1 + x2) // 2
    cv2.line(wall, (middle, y1), (middle, y2), frame, 1)
    if rng.random() < 0.5:
        cv2.line(wall, (x1, (y1 + y2) // 2), (x2, (y1 + y2) // 2), frame, 1)
    cv2.line(wall, (x1 - 2, y2 + 2), (x2 + 2, y2 + 2), (200, 200, 200), 1)
    cv2.line(wall, (x1 - 1, y2 + 4), (x2 + 2, y2 + 4), (60, 60, 65), 1)


def _paint_ground_floor(
    wall: np.ndarray, lit: np.ndarray, top: int, rng: np.random.Generator
) -> None:
    size = FACADE_PX
    sign = rng.integers(30, 230, 3).tolist()
    if rng.random() < 0.65:  # a shop: sign board, wide panes, perhaps a striped awning
        cv2.rectangle(wall, (6, top + 4), (size - 7, size - 4), (60, 58, 56), -1)
        cv2.rectangle(wall, (6, top + 4), (size - 7, top + 14), sign, -1)
        for x in range(24, size - 60, int(rng.integers(9, 16))):
            cv2.line(wall, (x, top + 8), (x + 5, top + 10), (240, 240, 240), 2)
        panes = int(rng.integers(3, 6))
        for pane in range(panes):
            x1 = 10 + pane * (size - 20) // panes
            x2 = 10 + (pane + 1) * (size - 20) // panes - 4
            _paint_window(wall, lit, (x1, top + 18, x2, size - 10), rng)
        if rng.random() < 0.55:
            for x in range(4, size - 4, 12):
                stripe = sign if (x // 12) % 2 else (225, 228, 230)
                cv2.rectangle(wall, (x, top + 14), (x + 11, top + 24), stripe, -1)
    else:
        bays = int(rng.integers(3, 5))
        for bay in range(bays):
            x1 = 14 + bay * (size - 20) // bays
            _paint_window(wall, lit, (x1, top + 12, x1 + size // bays // 2, size - 26), rng)
        cv2.rectangle(wall, (0, size - 12), (size, size), (95, 98, 100), -1)
    door = int(rng.integers(20, size - 40))
    cv2.rectangle(wall, (door, top + 16), (door + 20, size), (50, 52, 60), -1)
    cv2.rectangle(wall, (door + 3, top + 19), (door + 17, size), [c * 0.6 for c in sign], -1)


@lru_cache(maxsize=1)
def facades() -> list[tuple[np.ndarray, np.ndarray]]:
    """((256, 256, 3) uint8 wall, (256, 256) uint8 mask of the windows that glow at dusk)."""
    rng = np.random.default_rng(903)
    bank = []
    for _ in range(NUM_FACADES):
        wall, lit = _paint_wall(rng), np.zeros((FACADE_PX, FACADE_PX), np.uint8)
        floors, bays = int(rng.integers(3, 7)), int(rng.integers(3, 7))
        ground = FACADE_PX - FACADE_PX // floors
        cell_h, cell_w = (ground - 8) / (floors - 1), FACADE_PX / bays
        wide, tall = rng.uniform(0.4, 0.7), rng.uniform(0.5, 0.72)
        for floor in range(floors - 1):
            for bay in range(bays):
                x1 = int((bay + 0.5 - wide / 2) * cell_w)
                y1 = int(8 + (floor + 0.5 - tall / 2) * cell_h)
                box = (x1, y1, int(x1 + wide * cell_w), int(y1 + tall * cell_h))
                _paint_window(wall, lit, box, rng)
            if rng.random() < 0.3:
                y = int(8 + (floor + 1) * cell_h)
                cv2.line(wall, (0, y), (FACADE_PX, y), (205, 208, 210), 2)
        _paint_ground_floor(wall, lit, ground, rng)
        cv2.rectangle(wall, (0, 0), (FACADE_PX, 4), (205, 205, 205), -1)
        cv2.rectangle(wall, (0, 5), (FACADE_PX, 7), (70, 70, 75), -1)
        bank.append((wall, lit))
    return bank


@lru_cache(maxsize=1)
def ground_tiles() -> dict[str, list[np.ndarray]]:
    """Seamless enough (512, 512, 3) uint8 tiles of asphalt, slabs and grass, about 128 mean."""
    rng = np.random.default_rng(904)
    tiles: dict[str, list[np.ndarray]] = {"asphalt": [], "slabs": [], "grass": []}
    size = (TILE_PX, TILE_PX)
    for _ in range(4):
        grain = rng.normal(0, 13, size).astype(np.float32)
        stains = (fractal_noise(rng, size, base=4, octaves=5) - 0.5) * 60
        tile = np.repeat((122 + grain + stains)[..., None], 3, axis=2)
        tile = np.clip(tile, 0, 255).astype(np.uint8)
        for _ in range(int(rng.integers(1, 5))):  # cracks and patches
            walk = np.cumsum(rng.normal(0, 14, (14, 2)), axis=0) + rng.integers(60, 450, 2)
            cv2.polylines(tile, [walk.astype(np.int32)], False, (70, 70, 70), 1, cv2.LINE_AA)
        x, y = rng.integers(40, 420, 2).tolist()
        patch = tile[y : y + 60, x : x + 44]
        patch[:] = cv2.convertScaleAbs(patch, alpha=0.78)
        cv2.circle(tile, tuple(rng.integers(60, 450, 2).tolist()), 10, (82, 82, 84), -1)
        tiles["asphalt"].append(tile)
        cells = int(rng.choice([8, 16, 21]))
        slabs = rng.normal(1.0, 0.05, (cells, cells)).astype(np.float32)
        slab = cv2.resize(slabs, size, interpolation=cv2.INTER_NEAREST) * 138 + grain * 0.6
        slab += (fractal_noise(rng, size, base=4, octaves=4) - 0.5) * 40
        step = TILE_PX // cells
        slab[::step], slab[:, ::step] = slab[::step] * 0.74, slab[:, ::step] * 0.74
        tiles["slabs"].append(np.repeat(np.clip(slab, 0, 255).astype(np.uint8)[..., None], 3, 2))
        blades = 110 + rng.normal(0, 24, size) + (fractal_noise(rng, size, base=8, octaves=4)) * 40
        green = np.stack([blades * 0.55, blades, blades * 0.72], axis=2)
        tiles["grass"].append(np.clip(green, 0, 255).astype(np.uint8))
    return tiles


@lru_cache(maxsize=1)
def noise_bank() -> np.ndarray:
    """(1400, 2400, 3) uint8 sensor noise about 128 with a deviation of 20, slightly coloured."""
    rng = np.random.default_rng(905)
    luma = rng.normal(0, 17, (1400, 2400, 1)).astype(np.float32)
    chroma = rng.normal(0, 10, (1400, 2400, 3)).astype(np.float32)
    return np.clip(128 + luma + chroma, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def rain_bank() -> list[np.ndarray]:
    """(432, 768) uint8 pictures of streaks (two) and flakes (two) to add to a frame."""
    rng = np.random.default_rng(906)
    bank = []
    for number in range(4):
        picture = np.zeros((432, 768), np.uint8)
        for _ in range(420):
            x, y = int(rng.integers(0, 768)), int(rng.integers(0, 432))
            level = int(rng.integers(18, 70))
            if number < 2:
                size = int(rng.integers(8, 22))
                cv2.line(picture, (x, y), (x + size // 6, y + size), level, 1, cv2.LINE_AA)
            else:
                cv2.circle(picture, (x, y), int(rng.integers(1, 3)), level * 2, -1, cv2.LINE_AA)
        bank.append(picture)
    return bank
