"""Results to an MQTT broker, a message each."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any
from urllib.parse import unquote

from runtime.contract.errors import SinkError
from runtime.pipeline.sinks.base import SOURCE_FIELD, FrameResult, Sink, as_word
from runtime.pipeline.sinks.outage import hide_login, split_url
from runtime.pipeline.sinks.records import to_json_bytes, to_record

PORTS = {"mqtt": 1883, "mqtts": 8883}
QUALITY = 1  # of service: each message is delivered at least once while the broker is there
MOST_UNACKNOWLEDGED = 256
KEEP_ALIVE_S = 10
RECONNECT_S = (1, 15)  # shortest and longest wait
CONNECT_WAIT_S = 3.0  # at the start, so that the first results find a broker
ACKNOWLEDGE_WAIT_S = 2.0  # where too many are missing
END_WAIT_S = 3.0  # for the last acknowledgements

_log = logging.getLogger(__name__)


class MqttSink(Sink):
    """Publishes each result as JSON, as of `runtime.pipeline.sinks.records`.

    The broker may come later, and go and come back: results in between are lost and counted, since
    old ones help nobody.

    Args:
        url: mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC, or mqtts:// for TLS; "{source}" in the topic
            is the source's name.

    Raises:
        SinkError: not such an address, or the MQTT client is missing.
    """

    is_waited_for = False

    def __init__(self, url: str) -> None:
        parts = split_url(url, tuple(PORTS), "mqtt://HOST/TOPIC or mqtts://HOST/TOPIC")
        self._topic = unquote(parts.path.strip("/"))
        if not self._topic or re.search("[#+\0]", self._topic):
            raise SinkError(
                f"output {hide_login(url)} has the topic {self._topic!r}; expected one without "
                "'#' and '+', such as mqtt://HOST/kestrel/results"
            )
        try:
            from paho.mqtt import client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise SinkError(
                "--mqtt needs the MQTT client paho-mqtt 2, which is not installed. "
                "pip install 'kestrel-vision[mqtt]'"
            ) from None
        self.target = hide_login(url)
        self._num_refused = 0  # never given to the client
        self._num_given = 0
        self._num_acknowledged = 0
        self._is_closed = False
        self._was_connected = False
        self._was_answered = False  # by a broker or by its machine, well or not
        self._changed = threading.Condition()
        client: Any = paho.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=True)
        if parts.username is not None:
            password = None if parts.password is None else unquote(parts.password)
            client.username_pw_set(unquote(parts.username), password)
        if parts.scheme == "mqtts":
            client.tls_set()
        client.connect_timeout = CONNECT_WAIT_S
        client.max_queued_messages_set(MOST_UNACKNOWLEDGED)
        client.max_inflight_messages_set(MOST_UNACKNOWLEDGED)
        client.reconnect_delay_set(*RECONNECT_S)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        self._client = client
        client.connect_async(parts.hostname, parts.port or PORTS[parts.scheme], KEEP_ALIVE_S)
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._was_answered, CONNECT_WAIT_S)
        if not self._was_connected:
            _log.warning("output %s is not there yet; trying on", self.target)

    @property
    def num_lost(self) -> int:  # type: ignore[override]
        """Never given to the broker; once closed, also those that it did not acknowledge."""
        missing = self._num_given - self._num_acknowledged if self._is_closed else 0
        return self._num_refused + missing

    def write(self, result: FrameResult) -> None:
        body = to_json_bytes(to_record(result))
        if not self._client.is_connected():
            self._num_refused += 1
            return
        topic = self._topic.replace(SOURCE_FIELD, as_word(result.frame.source))
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._num_given - self._num_acknowledged < MOST_UNACKNOWLEDGED
                    or not self._client.is_connected()
                ),
                ACKNOWLEDGE_WAIT_S,
            )
            self._num_given += 1
        sent = self._client.publish(topic, body, qos=QUALITY)
        if sent.rc not in (0, _NO_CONNECTION):  # without one it is kept, and sent on the next
            with self._changed:
                self._num_given -= 1
            self._num_refused += 1

    def close(self) -> None:
        if self._is_closed:
            return
        deadline = time.monotonic() + END_WAIT_S
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._num_acknowledged >= self._num_given or not self._client.is_connected()
                ),
                max(deadline - time.monotonic(), 0),
            )
        self._is_closed = True
        self._client.disconnect()
        self._client.loop_stop()

    # --- on the client's thread

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, *rest: Any) -> None:
        if reason.is_failure:
            _log.warning("output %s refuses: %s. Trying on.", self.target, reason)
        elif self._was_connected or self._num_refused:
            _log.info("output %s is back; %d results were lost", self.target, self._num_refused)
        with self._changed:
            self._was_answered = True
            self._was_connected |= not reason.is_failure
            self._changed.notify_all()

    def _on_connect_fail(self, client: Any, data: Any) -> None:
        with self._changed:
            self._was_answered = True
            self._changed.notify_all()

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, *rest: Any) -> None:
        with self._changed:
            self._changed.notify_all()
        if reason.is_failure and not self._is_closed:
            _log.warning("output %s went away: %s. Trying on.", self.target, reason)

    def _on_publish(self, client: Any, data: Any, number: int, *rest: Any) -> None:
        with self._changed:
            self._num_acknowledged += 1
            self._changed.notify_all()


_NO_CONNECTION = 4  # MQTT_ERR_NO_CONN
