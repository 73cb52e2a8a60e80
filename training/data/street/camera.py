"""A pinhole camera with a shifted lens: rows below the horizon are lines of equal depth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

NEAR_M = 0.6  # nothing closer than this is drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """Where the camera stands; world axes are X right, Y up, Z along the street, metres.

    A point (x, y, z) of the camera's frame falls on (u0 + f x / z, v0 - f y / z), where pixel i
    covers [i, i + 1).
    """

    position: tuple[float, float, float]
    yaw: float
    focal: float
    centre_u: float
    horizon_v: float
    _cos_sin: tuple[float, float] = field(init=False, repr=False, compare=False)
    _rotation: np.ndarray = field(init=False, repr=False, compare=False)
    _eye: np.ndarray = field(init=False, repr=False, compare=False)
    _scale: np.ndarray = field(init=False, repr=False, compare=False)
    _centre: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cos, sin = float(np.cos(self.yaw)), float(np.sin(self.yaw))
        object.__setattr__(self, "_cos_sin", (cos, sin))
        rotation = np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
        object.__setattr__(self, "_rotation", rotation)
        object.__setattr__(self, "_eye", np.array(self.position))
        object.__setattr__(self, "_scale", np.array([self.focal, -self.focal]))
        object.__setattr__(self, "_centre", np.array([self.centre_u, self.horizon_v]))

    def rotation(self) -> np.ndarray:
        """(3, 3) world to camera: rows are the camera's right, up and forward axes."""
        return self._rotation

    def intrinsics(self) -> np.ndarray:
        """(3, 3) camera to homogeneous pixels."""
        return np.array(
            [[self.focal, 0.0, self.centre_u], [0.0, -self.focal, self.horizon_v], [0, 0, 1.0]]
        )

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) world metres to (..., 3) camera metres; the last column is depth."""
        return (points - self._eye) @ self._rotation.T

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project world points.

        Returns:
            (..., 2) pixels and (...) depth in metres; depth is clipped to NEAR_M for the division.
        """
        local = self.to_camera(points)
        depth = local[..., 2]
        scale = self._scale / np.maximum(depth, NEAR_M)[..., None]
        return self._centre + local[..., :2] * scale, depth

    def project_point(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Column, row and depth of one world point; quicker than `project` for one."""
        east, up, north = x - self.position[0], y - self.position[1], z - self.position[2]
        cos, sin = self._cos_sin
        depth = east * sin + north * cos
        scale = self.focal / max(depth, NEAR_M)
        return (self.centre_u + (east * cos - north * sin) * scale,
                self.horizon_v - up * scale, depth)  # fmt: skip

    def plane_to_image(self, origin: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(3, 3) homography from (s, t) of the plane origin + s a + t b to pixels."""
        columns = np.array([a, b, origin - self._eye]).T
        return self.intrinsics() @ self.rotation() @ columns

    def ground_at(self, u: float, depth: float) -> tuple[float, float]:
        """World (X, Z) of the ground point seen in column u at the given depth in metres."""
        right = (u - self.centre_u) / self.focal * depth
        cos, sin = self._cos_sin
        x, _, z = self.position
        return x + right * cos + depth * sin, z - right * sin + depth * cos

    def clip_polygon(self, points: np.ndarray) -> np.ndarray:
        """Clip a world polygon (N, 3) at the near plane; (M, 2) pixels, M = 0 when behind."""
        local = self.to_camera(points)
        kept = []
        for here, there in zip(local, np.roll(local, -1, axis=0), strict=True):
            if here[2] >= NEAR_M:
                kept.append(here)
            if (here[2] >= NEAR_M) != (there[2] >= NEAR_M):
                part = (NEAR_M - here[2]) / (there[2] - here[2])
                kept.append(here + part * (there - here))
        if len(kept) < 3:
            return np.zeros((0, 2))
        clipped = np.array(kept)
        scale = self.focal / clipped[:, 2]
        return np.stack(
            [self.centre_u + clipped[:, 0] * scale, self.horizon_v - clipped[:, 1] * scale], axis=1
        )
