#!/usr/bin/env bash
# Install the runtime on a Jetson: JetPack's own OpenCV and TensorRT, and nothing that hides them.
set -euo pipefail

readonly USAGE="Install Kestrel's runtime on a Jetson with JetPack 6 or 7.

usage: install.sh [--prefix DIR] [--extras NAMES] [--dry-run]

  --prefix DIR     where it goes; default: /opt/kestrel
  --extras NAMES   of video, track, web, webhook, mqtt, with commas; default: video,track
  --dry-run        say what was found and what would be done, and change nothing
  --help           this text

What it makes: DIR/venv, an environment that sees the system's packages, and DIR/app/runtime.
Run it again after an update of JetPack or of Kestrel; it changes what has changed.

Examples:
  deploy/jetson/install.sh --dry-run
      Says which JetPack, TensorRT, CUDA and OpenCV are there, and what would be installed.
  sudo deploy/jetson/install.sh --extras video,track,web
      Installs into /opt/kestrel, with the web page.
  deploy/jetson/install.sh --prefix ~/kestrel
      Installs without root.

Exit status: 0 done, 2 this machine cannot take it: one line says why and what to do."

readonly ALLOWED_EXTRAS=" video track web webhook mqtt "
# Brought by anything, these would hide what JetPack has, or fill the disk: no version is accepted.
readonly KEPT_OUT=(opencv-python opencv-python-headless opencv-contrib-python
    opencv-contrib-python-headless tensorrt torch onnx)
# Where the system's files are looked up; tests set it.
readonly SYSTEM_ROOT="${KESTREL_SYSTEM_ROOT:-}"

refuse() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

say() {
    printf '%-11s %s\n' "$1" "$2"
}

run() {
    if [[ $is_dry == yes ]]; then
        printf 'would run:'
        printf ' %q' "$@"
        printf '\n'
    else
        "$@"
    fi
}

read_options() {
    prefix=/opt/kestrel is_dry=no
    local listed=video,track
    while (($#)); do
        case $1 in
            --prefix) (($# > 1)) || refuse "--prefix needs a folder." && prefix=$2 && shift 2 ;;
            --extras) (($# > 1)) || refuse "--extras needs names." && listed=$2 && shift 2 ;;
            --dry-run) is_dry=yes && shift ;;
            -h | --help) printf '%s\n' "$USAGE" && exit 0 ;;
            *) refuse "$1 is no option of install.sh; --help says which there are." ;;
        esac
    done
    [[ -n $prefix && $prefix != -* ]] || refuse "--prefix is '$prefix'; expected a folder, such as /opt/kestrel or ./kestrel."
    read_extras "$listed"
    [[ $prefix == /* ]] || prefix=$PWD/$prefix
}

# Fills the array `extras` with names that stand between commas.
read_extras() {
    local names name
    mapfile -d , -t names < <(printf '%s' "$1")
    extras=()
    for name in "${names[@]}"; do
        name=${name#"${name%%[![:space:]]*}"}
        name=${name%"${name##*[![:space:]]}"}
        [[ -n $name ]] || continue
        [[ $name != *[[:space:]]* && $ALLOWED_EXTRAS == *" $name "* ]] ||
            refuse "--extras names '$name'; expected some of${ALLOWED_EXTRAS}(others bring wheels that hide JetPack's packages)."
        extras+=("$name")
    done
}

# An environment that is activated does not see JetPack's packages: the python3 behind it is asked.
leave_environment() {
    [[ -n ${VIRTUAL_ENV:-} ]] || return 0
    local path=:$PATH:
    while [[ $path == *":$VIRTUAL_ENV/bin:"* ]]; do
        path=${path/":$VIRTUAL_ENV/bin:"/:}
    done
    path=${path#:}
    PATH=${path%:}
    unset VIRTUAL_ENV
}

find_jetpack() {
    local machine file=$SYSTEM_ROOT/etc/nv_tegra_release line
    machine=$(uname -m)
    if [[ $machine != aarch64 || ! -r $file ]]; then
        refuse "this is no Jetson ($machine, and no /etc/nv_tegra_release); expected JetPack 6 or 7. On a desktop: pip install with the extras of README.md, or deploy/docker."
    fi
    line=$(head -n 1 "$file")
    if [[ ! $line =~ R([0-9]+).*REVISION:\ *([0-9.]+) ]]; then
        refuse "/etc/nv_tegra_release begins with '$line'; expected '# R36 (release), REVISION: 4.3, ...'."
    fi
    l4t_major=${BASH_REMATCH[1]}
    case $l4t_major in
        36) jetpack=6 cuda_major=12 ;;
        38 | 39) jetpack=7 cuda_major=13 ;;
        *) refuse "Jetson Linux $l4t_major.${BASH_REMATCH[2]} is here; expected 36 (JetPack 6), 38 or 39 (JetPack 7). Flash one of these: TensorRT before 10.3 cannot build these engines." ;;
    esac
    say JetPack "$jetpack (Jetson Linux $l4t_major.${BASH_REMATCH[2]})"
}

find_cuda() {
    local file=$SYSTEM_ROOT/usr/local/cuda/version.json version=""
    if [[ -r $file ]]; then
        version=$(sed -n '/"cuda"[[:space:]]*:/,/}/s/.*"version"[^"]*"\([0-9.]*\)".*/\1/p' "$file" | head -n 1)
    fi
    if [[ -n $version ]]; then
        cuda_major=${version%%.*}
        say CUDA "$version"
    else
        say CUDA "$cuda_major, as of JetPack $jetpack (no /usr/local/cuda/version.json)"
    fi
    case $cuda_major in
        12) bindings='cuda-bindings>=12.6,<13' ;;
        13) bindings='cuda-bindings>=13,<14' ;;
        *) refuse "CUDA $version is in /usr/local/cuda; expected 12.6 or newer, or 13. Install JetPack's own: sudo apt-get install nvidia-jetpack" ;;
    esac
}

find_python() {
    python=$(command -v python3) || refuse "there is no python3. sudo apt-get install python3 python3-venv"
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [[ ${version#*.} -ge 10 ]] || refuse "python3 is $version; expected 3.10 or newer, as JetPack 6 and 7 have it."
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        refuse "python3 cannot make environments. sudo apt-get install python3-venv"
    say Python "$version ($python)"
}

find_tensorrt() {
    local version
    version=$("$python" -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null) ||
        refuse "python3 cannot import TensorRT. sudo apt-get install nvidia-jetpack (or python3-libnvinfer)"
    local major=${version%%.*} rest=${version#*.}
    local minor=${rest%%.*}
    if ! ((major == 10 && minor >= 3 || major == 11 && minor <= 4)); then
        refuse "TensorRT $version is here; expected 10.3 to 11.4. Install the one of this JetPack: sudo apt-get install nvidia-jetpack"
    fi
    say TensorRT "$version"
}

find_opencv() {
    local found version numpy has_gstreamer is_wheel
    found=$("$python" - 2>/dev/null <<'PROBE'
import importlib.metadata as metadata
import re
import cv2, numpy
line = re.search(r"GStreamer:\s*(\w+)", cv2.getBuildInformation())
names = {(each.metadata["Name"] or "").lower() for each in metadata.distributions()}
print(cv2.__version__, numpy.__version__, line[1] if line else "NO",
      "wheel" if any(name.startswith("opencv-") for name in names) else "system")
PROBE
    ) || refuse "python3 cannot import cv2. sudo apt-get install python3-opencv (with GStreamer), or repair its NumPy: pip uninstall numpy"
    read -r version numpy has_gstreamer is_wheel <<<"$found"
    say OpenCV "$version, GStreamer: $has_gstreamer, built for NumPy ${numpy%%.*}"
    if [[ $is_wheel == wheel ]]; then
        say warning "an opencv wheel hides the system's OpenCV: pip uninstall opencv-python opencv-python-headless"
    elif [[ $has_gstreamer != YES ]]; then
        say warning "this OpenCV has no GStreamer, so csi:// and gst: will not open: sudo apt-get install python3-opencv"
    fi
    # cv2 was compiled for one major version of NumPy, and cannot be imported with another.
    case ${numpy%%.*} in
        1) numpy_wanted='numpy>=1.26,<2' ;;
        *) numpy_wanted='numpy>=2,<2.6' ;;
    esac
}

check_prefix() {
    local place=$prefix
    while [[ ! -e $place ]]; do place=$(dirname "$place"); done
    [[ -d $place && -w $place ]] ||
        refuse "$place cannot be written by $(id -un). Use sudo, or --prefix with a folder of yours."
    if [[ -r $prefix/venv/pyvenv.cfg ]] &&
        ! grep -q 'include-system-site-packages = true' "$prefix/venv/pyvenv.cfg"; then
        refuse "$prefix/venv does not see the system's packages, so not JetPack's either. Remove it, or choose another --prefix."
    fi
    say prefix "$prefix"
}

# What pyproject.toml says of the extras, one requirement a line.
list_requirements() {
    "$python" - "$source_root/pyproject.toml" "${extras[@]}" <<'READ'
import re
import sys
text = open(sys.argv[1], encoding="utf-8").read()
for name in sys.argv[2:]:
    found = re.search(rf"^{name} = \[(.*?)\]$", text, re.M | re.S)
    if found is None:
        print(f"error: pyproject.toml has no extra {name}; expected one. Update the sources.", file=sys.stderr)
        sys.exit(2)
    print("\n".join(re.findall(r'"([^"]+)"', found[1])))
READ
}

make_environment() {
    if [[ -x $prefix/venv/bin/python ]]; then
        say venv "is there"
    else
        run "$python" -m venv --system-site-packages "$prefix/venv"
    fi
    local pins=$prefix/constraints.txt name
    if [[ $is_dry == no ]]; then
        {
            printf '%s\n' "$numpy_wanted"
            for name in "${KEPT_OUT[@]}"; do printf '%s<0\n' "$name"; done
        } >"$pins"
    fi
    run "$prefix/venv/bin/python" -m pip install --disable-pip-version-check --quiet \
        --constraint "$pins" "$numpy_wanted" "$bindings" "${requirements[@]}"
}

copy_runtime() {
    local fresh=$prefix/app/.runtime.new
    run mkdir -p "$prefix/app"
    run rm -rf "$fresh" "$prefix/app/.runtime.old"
    run cp -R "$source_root/runtime" "$fresh"
    run chmod -R u=rwX,go=rX "$fresh"
    [[ ! -e $prefix/app/runtime ]] || run mv "$prefix/app/runtime" "$prefix/app/.runtime.old"
    run mv "$fresh" "$prefix/app/runtime"
    run rm -rf "$prefix/app/.runtime.old"
}

# The environment must use the system's OpenCV and TensorRT, and the runtime must start in it.
check_environment() {
    PYTHONPATH=$prefix/app${PYTHONPATH:+:$PYTHONPATH} "$prefix/venv/bin/python" - "$prefix/venv" <<'CHECK' ||
import sys
import cv2, numpy, tensorrt
import cuda.bindings
import runtime
for module in (cv2, tensorrt):
    if module.__file__.startswith(sys.argv[1]):
        sys.exit(f"{module.__name__} comes from {module.__file__}, not from JetPack")
cv2.resize(numpy.zeros((8, 8, 3), numpy.uint8), (4, 4))
CHECK
        refuse "the environment in $prefix/venv does not work (see above). Remove $prefix/venv and run this again."
}

main() {
    umask 022 # root's may be 077, and the user of the camera's unit must read what is made here
    read_options "$@"
    leave_environment
    source_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    find_jetpack
    find_cuda
    find_python
    find_tensorrt
    find_opencv
    check_prefix
    local listed
    listed=$(list_requirements)
    mapfile -t requirements < <(printf '%s' "$listed")
    make_environment
    copy_runtime
    if [[ $is_dry == yes ]]; then
        say finished "nothing was changed"
        return
    fi
    check_environment
    say finished "$prefix/venv/bin/python $prefix/app/runtime/run_video.py --help"
}

main "$@"
