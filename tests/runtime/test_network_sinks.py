from __future__ import annotations

import importlib.util
import json
import logging
import socket
import sys
import time

import pytest
from pipeline_fakes import results_of
from sink_servers import (
    PATIENCE_S,
    Broker,
    DeafServer,
    MuteServer,
    RtspRecorder,
    WebServer,
    wait_for,
)

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks import BufferedSink
from runtime.pipeline.sinks import mqtt as mqtt_module
from runtime.pipeline.sinks import outage as outage_module
from runtime.pipeline.sinks import webhook as webhook_module
from runtime.pipeline.sinks.mqtt import MqttSink
from runtime.pipeline.sinks.outage import hide_login
from runtime.pipeline.sinks.rtsp_push import RtspPushSink
from runtime.pipeline.sinks.webhook import WebhookSink


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(outage_module, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(outage_module, "LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(webhook_module, "PAUSE_S", 0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


# --- web hook


def test_webhook_posts_every_result_in_order_several_at_once():
    with WebServer() as server:
        sink = WebhookSink(server.url)
        for result in results_of(100):
            sink.write(result)
        sink.close()
    assert [record["frame"] for record in server.records] == list(range(100))
    assert server.records[7]["detections"] == [{"number": 7}]
    assert {"source", "time_s", "wall_time_s", "age_ms"} < set(server.records[0])
    assert len(server.bodies) == 4
    assert server.headers[0]["Content-Type"] == "application/json"
    assert sink.num_lost == 0


def test_webhook_does_not_wait_for_a_full_request():
    with WebServer() as server:
        sink = BufferedSink(WebhookSink(server.url), keeps_all=False)
        sink.write(next(results_of(1)))
        wait_for(lambda: len(server.records) == 1)
        sink.close()


def test_webhook_tries_again_where_the_failure_may_pass():
    with WebServer(statuses=(503, 429)) as server:
        sink = WebhookSink(server.url)
        for result in results_of(5):
            sink.write(result)
        sink._post(webhook_module.NUM_TRIES)
        sink.close()
    assert [record["frame"] for record in server.records] == list(range(5))
    assert sink.num_lost == 0


def test_webhook_that_is_refused_is_not_tried_again_and_counts(caplog):
    with WebServer(statuses=(403,)) as server:
        sink = WebhookSink(server.url)
        for result in results_of(webhook_module.MOST_RESULTS):
            sink.write(result)
        sink.close()
    assert server.records == []
    assert len(server.headers) == 1
    assert sink.num_lost == webhook_module.MOST_RESULTS
    assert "it answers 403" in caplog.text


def test_webhook_goes_on_when_the_server_is_back_and_says_both_in_a_line(caplog):
    with WebServer(statuses=(500,) * webhook_module.NUM_TRIES) as server:
        sink = WebhookSink(server.url)
        with caplog.at_level(logging.INFO, logger="runtime"):
            results = results_of(100_000)
            while not server.records:
                sink.write(next(results))
            sink.close()
    numbers = [record["frame"] for record in server.records]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert sink.num_lost == numbers[0] > 0
    texts = [record.getMessage() for record in caplog.records if "output" in record.getMessage()]
    assert len(texts) == 2
    assert "does not take results: it answers 500" in texts[0]
    assert f"takes results again; {numbers[0]} were lost" in texts[1]


@pytest.mark.parametrize("kind", [MuteServer, DeafServer])
def test_server_that_does_not_answer_holds_up_nobody(kind):
    with kind() as server:
        sink = BufferedSink(
            WebhookSink(f"http://127.0.0.1:{server.port}/", timeout_s=0.1),
            keeps_all=False,
            capacity=50,
        )
        longest_s = 0.0
        for result in results_of(500):
            begun = time.perf_counter()
            sink.write(result)
            longest_s = max(longest_s, time.perf_counter() - begun)
        sink.close()
    assert sink.num_written == 0
    assert sink.num_dropped + sink.num_failed == 500
    assert sink.num_failed > 0
    assert longest_s < PATIENCE_S / 10  # not the server's time-outs


def test_webhook_that_nobody_hears_counts_every_result():
    sink = BufferedSink(WebhookSink(f"http://127.0.0.1:{free_port()}/"), keeps_all=True)
    for result in results_of(70):
        sink.write(result)
    sink.close()
    assert (sink.num_written, sink.num_failed) == (0, 70)
    assert sink.error is None


@pytest.mark.parametrize("url", ["ftp://host/x", "host/x", "http://", "http://h:99999/"])
def test_webhook_refuses_what_is_no_address(url):
    with pytest.raises(SinkError, match="expected https://HOST/PATH"):
        WebhookSink(url)


def test_password_stays_out_of_what_is_shown():
    assert hide_login("rtsp://me:secret@host:8554/a") == "rtsp://host:8554/a"
    assert WebhookSink("https://me:secret@host/a").target == "https://host/a"


# --- MQTT


def test_mqtt_publishes_every_result_to_the_topic():
    with Broker() as broker:
        sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/cameras/{{source}}/results")
        for result in results_of(100):
            sink.write(result)
        sink.close()
    assert [message["frame"] for _, message in broker.messages] == list(range(100))
    assert {topic for topic, _ in broker.messages} == {"cameras/numbered/results"}
    assert sink.num_lost == 0


def test_mqtt_waits_for_a_broker_that_is_slower_than_the_run(monkeypatch):
    monkeypatch.setattr(mqtt_module, "MOST_UNACKNOWLEDGED", 8)
    with Broker() as broker:
        sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/a")
        for result in results_of(300):
            sink.write(result)
        sink.close()
    assert len(broker.messages) == 300
    assert sink.num_lost == 0


def test_mqtt_gives_user_and_password():
    with Broker() as broker:
        sink = MqttSink(f"mqtt://me:p%40ss@127.0.0.1:{broker.port}/a")
        sink.close()
    assert b"me" in broker.logins[0]
    assert b"p@ss" in broker.logins[0]
    assert "p" not in sink.target.partition("//")[2]


def test_mqtt_without_a_broker_counts_and_ends(monkeypatch, caplog):
    monkeypatch.setattr(mqtt_module, "CONNECT_WAIT_S", 0.2)
    sink = BufferedSink(MqttSink(f"mqtt://127.0.0.1:{free_port()}/a"), keeps_all=False)
    for result in results_of(20):
        sink.write(result)
    sink.close()
    assert sink.num_written == 0
    assert sink.num_dropped + sink.num_failed == 20
    assert "is not there yet" in caplog.text


def test_mqtt_goes_on_when_the_broker_comes_back(monkeypatch, caplog):
    monkeypatch.setattr(mqtt_module, "RECONNECT_S", (1, 1))
    numbers = results_of(10_000_000)
    with Broker() as broker:
        sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/a")
        sink.write(next(numbers))
        broker.wait_until(lambda: broker.messages)
    wait_for(lambda: not sink._client.is_connected())
    for _ in range(5):
        sink.write(next(numbers))
    assert sink.num_lost == 5
    with caplog.at_level(logging.INFO, logger="runtime"), Broker(broker.port) as second:
        wait_for(sink._client.is_connected)
        sink.write(next(numbers))
        second.wait_until(lambda: second.messages)
        sink.close()
    assert second.messages[-1][1]["frame"] == 6
    assert sink.num_lost == 5
    assert "is back; 5 results were lost" in caplog.text


def test_mqtt_counts_what_the_broker_did_not_acknowledge(monkeypatch):
    monkeypatch.setattr(mqtt_module, "END_WAIT_S", 0.05)

    class SilentBroker(Broker):
        def serve(self, connection, stream):
            stream.read(2)
            connection.sendall(b"\x20\x02\x00\x00")
            while stream.read1(1 << 16):
                pass

    with SilentBroker() as broker:
        sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/a")
        for result in results_of(3):
            sink.write(result)
        sink.close()
    assert sink.num_lost == 3


def test_mqtt_says_that_the_broker_refuses(caplog):
    with Broker(refuses=True) as broker:
        sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/a")
        wait_for(lambda: "refuses" in caplog.text)
        sink.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host/a", "expected mqtt://HOST/TOPIC"),
        ("mqtt://host", "has the topic ''"),
        ("mqtt://host/a/%23", "without '#' and"),
    ],
)
def test_mqtt_refuses_what_is_no_topic(url, message):
    with pytest.raises(SinkError, match=message):
        MqttSink(url)


# --- RTSP


def feed_until(sink, condition, fps=30.0, most=3000):
    """Write numbered pictures at a camera's pace until the condition holds; their number."""
    for count, result in enumerate(results_of(most, fps=fps)):
        if condition():
            return count
        sink.write(result)
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_rtsp_publishes_every_picture():
    with RtspRecorder() as server:
        sink = RtspPushSink(f"rtsp://127.0.0.1:{server.port}/live", fps=30.0)
        num_sent = feed_until(sink, lambda: server.num_pictures > 20)
        sink.close()
        server.wait_until(lambda: "TEARDOWN" in server.requests)
    assert server.requests == ["OPTIONS", "ANNOUNCE", "SETUP", "RECORD", "TEARDOWN"]
    assert server.num_pictures == num_sent
    assert server.num_key_pictures >= 1
    assert sink.num_lost == 0


@pytest.mark.parametrize("kind", [MuteServer, None], ids=["mute", "none"])
def test_rtsp_server_that_does_not_take_it_costs_counted_frames(kind, caplog):
    port = free_port()
    server = None if kind is None else kind(port)
    sink = BufferedSink(
        RtspPushSink(f"rtsp://u:secret@127.0.0.1:{port}/live", fps=30.0, timeout_s=0.3),
        keeps_all=False,
    )
    feed_until(sink, lambda: sink.num_failed > 0)
    sink.close()
    if server is not None:
        server.__exit__()
    assert "does not take results" in caplog.text
    assert "secret" not in caplog.text
    assert caplog.text.count("\n") == 1


@pytest.mark.parametrize("ends_before", [True, False], ids=["at-the-end", "on-the-way"])
def test_rtsp_frames_sent_to_a_port_without_a_server_all_count_as_lost(ends_before):
    sink = RtspPushSink(f"rtsp://127.0.0.1:{free_port()}/live", fps=30.0)
    if ends_before:
        num_sent = feed_until(sink, lambda: sink._num_unsure == 3)
    else:
        num_sent = feed_until(sink, lambda: sink.num_lost > 0)
    sink.close()
    assert sink.num_lost == num_sent > 0


def test_rtsp_goes_on_when_the_server_is_back():
    with RtspRecorder() as first:
        url = f"rtsp://127.0.0.1:{first.port}/live"
        sink = RtspPushSink(url, fps=30.0, timeout_s=2.0)
        feed_until(sink, lambda: first.num_pictures > 3)
    feed_until(sink, lambda: sink.num_lost > 3)
    with RtspRecorder(first.port) as second:
        feed_until(sink, lambda: second.num_pictures > 3)
        sink.close()
    assert second.num_key_pictures >= 1


def test_rtsp_refuses_what_is_no_address():
    with pytest.raises(SinkError, match="expected rtsp://HOST:8554/PATH"):
        RtspPushSink("http://host/a", fps=25.0)


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("httpx2", lambda: WebhookSink("http://127.0.0.1/"), "webhook"),
        ("paho.mqtt", lambda: MqttSink("mqtt://127.0.0.1/a"), "mqtt"),
        ("av", lambda: RtspPushSink("rtsp://127.0.0.1/a", fps=25.0), "video"),
    ],
    ids=["webhook", "mqtt", "rtsp"],
)
def test_client_that_is_not_installed_is_told_with_its_extra(monkeypatch, module, make, extra):
    monkeypatch.setitem(sys.modules, module, None)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find_spec(name)
    )
    with pytest.raises(SinkError, match=rf"kestrel-vision\[{extra}\]"):
        make()


def test_records_are_json_even_with_nan():
    from runtime.pipeline.sinks.records import to_json_bytes

    text = to_json_bytes({"a": [float("nan"), 1.5], "b": {"c": float("inf")}, "ü": True})
    assert json.loads(text) == {"a": [None, 1.5], "b": {"c": None}, "ü": True}
    assert b"NaN" not in text
