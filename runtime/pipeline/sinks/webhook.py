"""Results to a web server: JSON by HTTP POST, several in one request."""

from __future__ import annotations

import time
from typing import Any

from runtime.contract.errors import SinkError, one_line
from runtime.pipeline.sinks.base import FrameResult, Sink
from runtime.pipeline.sinks.outage import Outage, hide_login, split_url
from runtime.pipeline.sinks.records import to_json_bytes, to_record

MOST_RESULTS = 32  # in one request
LONGEST_WAIT_S = 0.5  # of a result for others to share its request
TIMEOUT_S = 5.0  # to connect, to send, and for each part of the answer
NUM_TRIES = 3  # of one request, where the failure may pass
PAUSE_S = 0.2  # before the second try; twice as long before the next
MOST_ANSWER_BYTES = 1 << 16  # read, so that the connection can be used again
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class WebhookSink(Sink):
    """Posts {"results": [...]}, each as of `runtime.pipeline.sinks.records`, in order.

    A request that fails is tried again; then its results are lost and counted, and so are those
    that come while the server is given time. One that was answered too late may come twice:
    "source" and "frame" tell.

    Args:
        url: http:// or https://, with user and password where the server wants them.

    Raises:
        SinkError: not such an address, or the HTTP client is missing.
    """

    is_waited_for = False

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        split_url(url, ("http", "https"), "https://HOST/PATH")
        try:
            import httpx2
        except ImportError:
            raise SinkError(
                "--webhook needs the HTTP client httpx2, which is not installed. "
                "pip install 'kestrel-vision[webhook]'"
            ) from None
        self.target = hide_login(url)
        self.num_lost = 0
        self._url = url
        self._errors = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError)
        self._client: Any = httpx2.Client(timeout=httpx2.Timeout(timeout_s))
        self._outage = Outage(self.target)
        self._batch: list[dict[str, Any]] = []
        self._batch_since = 0.0
        self._is_closed = False

    def write(self, result: FrameResult) -> None:
        if not self._batch:
            self._batch_since = time.monotonic()
        self._batch.append(to_record(result))
        self.idle()

    def idle(self) -> None:
        """Post what waited long enough."""
        waited_s = time.monotonic() - self._batch_since
        if len(self._batch) >= MOST_RESULTS or (self._batch and waited_s >= LONGEST_WAIT_S):
            self._post(NUM_TRIES)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._batch:
            self._post(num_tries=1)
        self._client.close()

    def _post(self, num_tries: int) -> None:
        batch, self._batch = self._batch, []
        if self._outage.is_waiting:
            self.num_lost += len(batch)
            return
        body = to_json_bytes({"results": batch})
        for remaining in range(num_tries - 1, -1, -1):
            problem, may_pass = self._try(body)
            if not problem:
                self._outage.end(self.num_lost)
                return
            if not may_pass or not remaining:
                break
            time.sleep(PAUSE_S * 2 ** (num_tries - 1 - remaining))
        self.num_lost += len(batch)
        self._outage.begin(problem)

    def _try(self, body: bytes) -> tuple[str, bool]:
        """What went wrong, empty where nothing did; and whether another try may help."""
        headers = {"Content-Type": "application/json"}
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                num_bytes = 0
                for part in response.iter_raw():
                    num_bytes += len(part)
                    if num_bytes > MOST_ANSWER_BYTES:
                        break
                if response.is_success:
                    return "", False
                return f"it answers {response.status_code}", response.status_code in TRANSIENT
        except self._errors as error:
            return one_line(error).rstrip("."), True
