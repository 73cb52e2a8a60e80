"""What reads and writes videos: PyAV, and the codecs of the hardware."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.doctoring.findings import Finding
from runtime.doctoring.import_cures import cure_for
from runtime.doctoring.survey import Survey
from runtime.doctoring.wheels import TAKEN, check_version

_SUBJECT = "Video"
_ENCODER = "libx264"  # what the runtime's outputs are made with


def check_pyav(survey: Survey) -> Iterator[Finding]:
    """PyAV, its H.264 encoder and its decoders."""
    if survey.machine.finds_module("av") is None:
        yield Finding(
            _SUBJECT,
            "pyav-none",
            "note",
            "PyAV is not installed: --out writes MPEG-4, there is no --rtsp-out, and OpenCV reads "
            "streams",
            f"pip install 'av{TAKEN['av']}'",
        )
        return
    answer = survey.ask("pyav")
    if answer.fault:
        yield Finding(
            _SUBJECT,
            "pyav-broken",
            "error",
            f"PyAV does not import: {answer.fault}",
            cure_for(answer, "av"),
        )
        return
    data = answer.data
    yield from check_version(_SUBJECT, "pyav", "av", data["version"], "av")
    missing = [name for name in ("h264", "mjpeg") if name not in data["decoders"]]
    if _ENCODER not in data["encoders"]:
        yield Finding(
            _SUBJECT,
            "pyav-no-h264",
            "warning",
            f"PyAV {data['version']} has no {_ENCODER}: no H.264 in --out and --rtsp-out",
            "its FFmpeg was built without it: pip install --force-reinstall --only-binary av av",
        )
    if missing:
        yield Finding(
            _SUBJECT,
            "pyav-no-decoder",
            "warning",
            f"PyAV {data['version']} cannot read {', '.join(missing)}",
            "its FFmpeg was built without it: pip install --force-reinstall --only-binary av av",
        )
    if _ENCODER in data["encoders"] and not missing:
        text = f"PyAV {data['version']}: reads {', '.join(data['decoders'])}; writes {_ENCODER}"
        yield Finding(_SUBJECT, "pyav", "ok", text)


def check_hardware(survey: Survey) -> Iterator[Finding]:
    """Encoders and decoders of the hardware, which `gst:` pipelines can use."""
    machine = survey.machine
    found = []
    if any(
        machine.glob(f"/dev/{name}") for name in ("v4l2-nvdec", "nvhost-nvdec", "nvhost-nvdec0")
    ):
        found.append("nvv4l2decoder")
    if any(machine.glob(f"/dev/{name}") for name in ("v4l2-nvenc", "nvhost-msenc", "nvhost-nvenc")):
        found.append("nvv4l2h264enc")
    found += [f"VA-API or V4L2 ({path.name})" for path in machine.glob("/dev/dri/renderD*")]
    if found:
        yield Finding(_SUBJECT, "video-hardware", "ok", f"hardware codecs: {', '.join(found)}")
