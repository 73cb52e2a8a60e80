"""Cameras: nodes that cannot be opened, are busy or missing, and what V4L2's structures say."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from planted import Planted, codes, give_to_video, only

from runtime.doctoring import cameras, v4l2
from runtime.doctoring.machine import User
from runtime.doctoring.survey import Survey

HEADER = Path("/usr/include/linux/videodev2.h")


def plant_camera(planted: Planted, mode: int = 0o660) -> Path:
    planted.file("/sys/class/video4linux/video0/name", "HD Webcam C525\n")
    node = planted.file("/dev/video0")
    node.chmod(mode)
    return node


def test_machine_without_cameras_is_fine(planted: Planted):
    assert not codes(list(cameras.check_cameras(Survey(planted.machine()))))


def test_camera_that_the_user_may_not_open_is_found(planted: Planted):
    node = plant_camera(planted)
    give_to_video(node)
    found = only(list(cameras.check_cameras(Survey(planted.machine()))))
    assert (found.code, found.level) == ("camera-permission", "error")
    assert "/dev/video0 (HD Webcam C525)" in found.found
    assert found.cure.startswith("sudo usermod -aG ")
    member = User(4242, frozenset((node.stat().st_gid,)))
    assert not codes(list(cameras.check_cameras(Survey(planted.machine(user=member)))))


def test_camera_that_a_container_does_not_get_is_found(planted: Planted):
    plant_camera(planted).unlink()
    planted.file("/.dockerenv")
    found = only(list(cameras.check_cameras(Survey(planted.machine()))))
    assert (found.code, found.level) == ("camera-not-here", "note")
    assert found.cure.endswith("start the container with --device /dev/video0")
    (planted.root / ".dockerenv").unlink()
    assert only(list(cameras.check_cameras(Survey(planted.machine())))).level == "error"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root makes a node of root's")
def test_nobody_is_told_to_join_roots_group(planted: Planted):
    plant_camera(planted)
    found = only(list(cameras.check_cameras(Survey(planted.machine()))))
    assert "usermod -aG root" not in found.cure
    assert 'KERNEL=="video*", GROUP="video"' in found.cure


def test_camera_that_another_program_holds_is_found_with_its_name(planted: Planted):
    plant_camera(planted, 0o666)
    planted.file("/proc/4711/comm", "obs\n")
    descriptors = planted.root / "proc/4711/fd"
    descriptors.mkdir()
    (descriptors / "7").symlink_to("/dev/video0")
    found = only(list(cameras.check_cameras(Survey(planted.machine()))))
    assert found.code == "camera-busy"
    assert "open in obs (process 4711)" in found.found


def test_device_that_is_no_camera_is_told_by_the_driver(planted: Planted):
    """/dev/null opens, and knows no ioctl of V4L2."""
    (planted.root / "dev").mkdir()
    (planted.root / "dev/video0").symlink_to("/dev/null")
    survey = Survey(planted.machine(user=User.of_process()))
    found = only(list(cameras.check_cameras(survey)))
    assert found.code == "camera-no-answer"
    assert "Inappropriate ioctl" in found.found
    assert "cable" in found.cure


def capability(flags: int, own_flags: int) -> bytes:
    return struct.pack(
        "=16s32s32sIII12x", b"uvcvideo", b"HD Webcam C525", b"usb-1", 393984, flags, own_flags
    )


def test_capabilities_are_those_of_the_node_where_the_driver_tells_them():
    block = capability(v4l2.DEVICE_CAPABILITIES | v4l2.VIDEO_CAPTURE, 0x00A00000)  # metadata
    assert v4l2.parse_capability(block)["gives_pictures"] is False
    block = capability(v4l2.VIDEO_CAPTURE, 0)
    assert v4l2.parse_capability(block) == {
        "driver": "uvcvideo",
        "card": "HD Webcam C525",
        "gives_pictures": True,
        "is_multiplanar": False,
        "is_codec": False,
    }


def test_format_is_read_from_its_place():
    block = struct.pack("=III32s4s16x", 0, 1, 1, b"Motion-JPEG", b"MJPG")
    assert v4l2.parse_format(block) == "MJPG"


PROBE = r"""
#include <linux/videodev2.h>
#include <stddef.h>
#include <stdio.h>
int main(void) {
    printf("%lu %lu %zu %zu %zu\n", (unsigned long)VIDIOC_QUERYCAP, (unsigned long)VIDIOC_ENUM_FMT,
           sizeof(struct v4l2_capability), sizeof(struct v4l2_fmtdesc),
           offsetof(struct v4l2_fmtdesc, pixelformat));
    printf("%u %u %u %u %u\n", V4L2_CAP_VIDEO_CAPTURE, V4L2_CAP_VIDEO_CAPTURE_MPLANE,
           V4L2_CAP_VIDEO_M2M, V4L2_CAP_VIDEO_M2M_MPLANE, V4L2_CAP_DEVICE_CAPS);
    return 0;
}
"""


@pytest.mark.skipif(
    shutil.which("cc") is None or not HEADER.is_file() or os.name == "nt",
    reason="needs a C compiler and the kernel's headers",
)
def test_numbers_of_v4l2_are_those_of_the_kernels_header(tmp_path: Path):
    (tmp_path / "probe.c").write_text(PROBE)
    subprocess.run(["cc", "-o", tmp_path / "probe", tmp_path / "probe.c"], check=True)
    done = subprocess.run([tmp_path / "probe"], capture_output=True, text=True, check=True)
    requests, flags = done.stdout.splitlines()
    assert requests.split() == [
        str(each) for each in (v4l2.QUERY_CAPABILITY, v4l2.ENUMERATE_FORMATS, 104, 64, 44)
    ]
    ours = (
        v4l2.VIDEO_CAPTURE,
        v4l2.VIDEO_CAPTURE_MPLANE,
        v4l2.MEMORY_TO_MEMORY,
        v4l2.MEMORY_TO_MEMORY_MPLANE,
        v4l2.DEVICE_CAPABILITIES,
    )
    assert flags.split() == [str(each) for each in ours]
