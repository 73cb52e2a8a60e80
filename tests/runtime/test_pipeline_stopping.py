from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from runtime.pipeline.stopping import StopSignal

TWICE = """
import os, signal, time
from runtime.pipeline.stopping import StopSignal
with StopSignal() as stop:
    os.kill(os.getpid(), signal.{name})
    print(stop.is_set, flush=True)
    os.kill(os.getpid(), signal.{name})
    time.sleep(30)
print("never")
"""


ONCE = """
import os, signal
from runtime.pipeline.stopping import StopSignal
before = signal.getsignal(signal.{name})
with StopSignal() as stop:
    assert not stop.is_set
    os.kill(os.getpid(), signal.{name})
    assert stop.is_set
assert signal.getsignal(signal.{name}) is before
print("heard")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_first_signal_is_heard_and_the_handler_put_back(name):
    program = [sys.executable, "-c", ONCE.format(name=name)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "heard\n", done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_second_signal_ends_the_process_at_once(name):
    program = [sys.executable, "-c", TWICE.format(name=name)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "True\n"
    assert done.returncode == -getattr(signal, name)


def test_off_the_main_thread_no_handler_is_touched():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter():
        with StopSignal() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.is_set))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(5)
    assert seen == [(before, False)]


SMALL_STACK = """
import ctypes, os, signal
from runtime.pipeline import stopping
place = ctypes.create_string_buffer(12000)
small = stopping._SignalStack(ctypes.addressof(place), 0, len(place))
libc = ctypes.CDLL(None)
assert libc.sigaltstack(ctypes.byref(small), None) == 0
with stopping.StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.is_set
now = stopping._SignalStack()
libc.sigaltstack(None, ctypes.byref(now))
print(now.flags)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack is Linux's here")
def test_small_signal_stack_that_a_library_left_behind_is_given_up():
    done = subprocess.run(
        [sys.executable, "-c", SMALL_STACK], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"  # SS_DISABLE
