from __future__ import annotations

import threading
import time

import pytest

from runtime.pipeline.ring import Ring, RingClosedError

WAIT_S = 0.05  # long enough for a thread that does not wait to have gone on


def test_ring_gives_items_in_the_order_they_came():
    ring = Ring(3)
    for item in (1, 2, 3):
        ring.put(item)
    assert [ring.get(), ring.get(), ring.get()] == [1, 2, 3]


def test_ring_keeps_the_newest_and_counts_what_it_drops():
    ring = Ring(2, keeps_newest=True)
    dropped = [ring.put(item) for item in range(5)]
    assert dropped == [None, None, 0, 1, 2]
    assert ring.num_dropped == 3
    assert [ring.get(), ring.get()] == [3, 4]


def test_ring_of_a_file_waits_for_room_and_drops_nothing():
    ring = Ring(1)
    ring.put("first")
    producer = threading.Thread(target=ring.put, args=("second",))
    producer.start()
    time.sleep(WAIT_S)
    assert producer.is_alive()
    assert ring.get() == "first"
    producer.join(5)
    assert ring.get() == "second"
    assert ring.num_dropped == 0


def test_closed_ring_gives_what_is_left_and_then_raises():
    ring = Ring(2)
    ring.put(1)
    ring.close()
    assert ring.get() == 1
    with pytest.raises(RingClosedError):
        ring.get()


def test_closing_wakes_a_producer_that_waits_for_room():
    ring = Ring(1)
    ring.put(1)
    raised = []

    def produce():
        try:
            ring.put(2)
        except RingClosedError:
            raised.append(True)

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(WAIT_S)
    ring.close()
    producer.join(5)
    assert raised == [True]


def test_get_gives_up_after_its_time():
    ring = Ring(1)
    with pytest.raises(TimeoutError):
        ring.get(timeout_s=0.01)
