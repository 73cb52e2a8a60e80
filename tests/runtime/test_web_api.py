"""The web page's API: every answer is as the OpenAPI description says, control acts on the run."""

from __future__ import annotations

import dataclasses
import json
import time
from types import SimpleNamespace

import jsonschema_rs
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sink_servers import wait_for
from tiny_bundle import CLASSES, InputGeometry, write_tiny_bundle
from web_run import Camera, WebRun

from runtime.contract.bundle import VERIFY_NAME, VERIFY_SCHEMA
from runtime.web import watching
from runtime.web.metrics import write_metrics
from runtime.web.openapi import OPERATIONS, describe_api
from runtime.web.page_files import read_page
from runtime.web.reading import MOST_BYTES
from runtime.web.server import make_app
from runtime.web.watching import Watch

GEOMETRY = InputGeometry(96, 128)
PROOF = {
    "schema": VERIFY_SCHEMA,
    "data": "discs",
    "images": 3,
    "artifacts": [
        {"precision": "fp32", "backend": "onnxruntime", "verdict": "pass", "AP": 0.5},
        {"precision": "fp32", "backend": "openvino", "verdict": "pass", "AP": float("nan")},
    ],
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_tiny_bundle(folder, geometry=GEOMETRY, num_samples=0)
    (folder / VERIFY_NAME).write_text(json.dumps(PROOF))  # NaN and all
    return folder


@pytest.fixture(scope="module")
def run(bundle):
    with WebRun(bundle, [Camera("left"), Camera("right")]) as run:
        wait_for(lambda: len(run.results.rows) > 10)
        yield run


def resolved(schema):
    """A schema by itself, with what it refers to."""
    return {**schema, "components": describe_api(has_token=False)["components"]}


def check_answer(operation, answer):
    """Hold an answer against the description."""
    described = operation.describe()["responses"][str(answer.status)]
    if "content" not in described:
        assert answer.body == b""
        return
    ((kind, media),) = described["content"].items()
    assert answer.headers.get_content_type() == kind
    if kind == "application/json":
        jsonschema_rs.validate(resolved(media["schema"]), answer.json)


def operation_of(handler):
    return next(each for each in OPERATIONS if each.handler == handler)


@pytest.mark.parametrize(
    "operation",
    [each for each in OPERATIONS if each.method == "GET" and not each.is_endless],
    ids=lambda each: each.handler,
)
def test_answer_is_as_described(run, operation):
    answer = run.get(operation.path)
    assert answer.status == 200
    check_answer(operation, answer)


def test_description_is_a_valid_openapi_document():
    import schemathesis

    for has_token in (False, True):
        document = describe_api(has_token=has_token)
        schema = schemathesis.openapi.from_dict(document)
        assert schema.specification.version == "3.1.0"
        found = {(each.ok().method.upper(), each.ok().path) for each in schema.get_all_operations()}
        assert found == {(each.method, each.path) for each in OPERATIONS}
    for name, schema in document["components"]["schemas"].items():
        jsonschema_rs.validator_for(resolved(schema))  # raises where it is none
        assert name


def test_every_route_is_in_the_description_or_a_file_of_the_page(run):
    routes = make_app(run.server._face, run.server.access, run.server.connections)._app.routes
    served = {(method, route.path) for route in routes for method in route.methods - {"HEAD"}}
    described = {(each.method, each.path) for each in OPERATIONS}
    assert served == described | {("GET", path) for path in read_page()}


def test_state_tells_what_the_pipeline_counts(run):
    until = time.monotonic() + 60
    while True:  # both have to deliver first
        state = run.get("/api/state").json
        are_delivering = [source["num_delivered"] > 0 for source in state["sources"]]
        if all(are_delivering) or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert [source["name"] for source in state["sources"]] == ["left", "right"]
    assert [stage["name"] for stage in state["stages"]] == list(run.page.times.stages)
    for source in state["sources"]:
        assert source["state"] == "running"
        assert source["num_captured"] >= source["num_delivered"] > 0
        assert source["num_objects"] in (0, 1, 2)
        assert source["age_ms"] > 0
    assert state["health"] == {"ok": True, "reason": ""}
    assert state["bundle"]["backend"] == "onnxruntime"


def test_age_grows_while_nothing_comes(run):
    watch = run.page._server._face.watch
    shown = SimpleNamespace(age_ms=5.0, seen_at=time.monotonic() - 60, num_objects=1)
    still = SimpleNamespace(last=lambda name: shown)
    told = Watch._source_to_json(SimpleNamespace(_board=still), watch.summaries[0], 0.0)
    assert 60_005 <= told["age_ms"] < 120_000


def test_name_that_is_no_utf_8_is_written_in_metrics(run):
    summary = dataclasses.replace(run.page._server._face.watch.summaries[0], name="bad\udcff.mp4")
    watch = run.page._server._face.watch
    times = SimpleNamespace(spreads=dict)
    told = SimpleNamespace(
        summaries=[summary], rates=[1.0], times=times, why_ill=watch.why_ill, uptime_s=1.0
    )
    text = write_metrics(told, run.page._server._face.bundle(), 0)
    assert b'source="bad\\\\udcff.mp4"' in text.encode()


def test_events_are_states_as_they_come(run):
    response = run.open_stream("/api/events")
    assert response.getheader("Content-Type") == "text/event-stream"
    uptimes = []
    for _ in range(2):
        assert response.readline() == b"event: state\n"
        word, _, text = response.readline().decode().partition(": ")
        assert word == "data"
        state = json.loads(text)
        jsonschema_rs.validate(resolved({"$ref": "#/components/schemas/State"}), state)
        uptimes.append(state["uptime_s"])
        assert response.readline() == b"\n"
    assert uptimes[1] > uptimes[0]
    response.close()


def test_card_shows_the_verdict_of_each_stage(run):
    proof = run.get("/api/card").json["proof"]
    assert (proof["data"], proof["num_images"]) == ("discs", 3)
    rows = [(each["backend"], each["verdict"], each["ap"]) for each in proof["stages"]]
    assert rows == [("onnxruntime", "pass", 0.5), ("openvino", "pass", None)]
    assert [each["is_running"] for each in proof["stages"]] == [True, False]


def test_what_runs_without_a_proof_is_told(tmp_path):
    folder = write_tiny_bundle(tmp_path / "tiny", geometry=GEOMETRY, num_samples=0)
    (folder / VERIFY_NAME).write_text(json.dumps({**PROOF, "artifacts": PROOF["artifacts"][1:]}))
    with WebRun(folder) as run:
        answer = run.get("/api/card")
        check_answer(operation_of("card"), answer)
        stages = answer.json["proof"]["stages"]
    told = [(each["backend"], each["verdict"], each["is_running"]) for each in stages]
    assert told == [("openvino", "pass", False), ("onnxruntime", "not run", True)]


def test_damaged_proof_leaves_a_card_without(tmp_path):
    folder = write_tiny_bundle(tmp_path / "tiny", geometry=GEOMETRY, num_samples=0)
    with WebRun(folder) as run:
        (folder / VERIFY_NAME).write_text('{"artifacts": [7]}')
        answer = run.get("/api/card")
        assert answer.status == 200
        assert answer.json["proof"] is None


# --- thresholds


def names_after_change(run, source):
    """What is found in a source's frames that were captured after now."""
    newest = max((row[1] for row in run.results.rows if row[0] == source), default=-1)
    beyond = newest + 10  # those under way may have been submitted before

    def later():
        return [row for row in run.results.rows if row[0] == source and row[1] > beyond]

    wait_for(lambda: len(later()) > 3)
    return {row[2] for row in later()}


def test_thresholds_act_on_the_running_graph_by_class_and_by_source(run):
    both = (CLASSES[0], CLASSES[2])
    assert names_after_change(run, "left") == {both}
    asked = {"score": {"per_class": {CLASSES[0]: 0.95}}, "source": "left"}
    answer = run.put("/api/thresholds", asked)
    assert answer.status == 200
    check_answer(operation_of("set_thresholds"), answer)
    left, right = answer.json["sources"]
    assert left["score"]["per_class"] == {CLASSES[0]: 0.95}
    assert right["score"]["per_class"] == {}
    assert names_after_change(run, "left") == {(CLASSES[2],)}
    assert names_after_change(run, "right") == {both}
    assert run.put("/api/thresholds", {"score": {"default": 0.7}}).status == 200
    assert names_after_change(run, "right") == {(CLASSES[0],)}
    asked = {"score": {"default": 0.3, "per_class": {}}, "iou": 0.4}
    rows = run.put("/api/thresholds", asked).json["sources"]
    assert [(row["score"]["default"], row["iou"]) for row in rows] == [(0.3, 0.4)] * 2
    assert names_after_change(run, "left") == {both}


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"score": {"default": 1.5}}, 422, "score.default is 1.5; expected a number of 0 to 1"),
        ({"score": {"default": True}}, 422, "score.default is True"),
        ({"score": {"default": "0.5"}}, 422, "score.default is '0.5'"),
        ({"score": 0.5}, 422, "score is 0.5; expected an object"),
        ({"score": {"per_class": {"blue bal": 0.5}}}, 422, "did you mean 'blue ball'?"),
        ({"score": {"per_class": {"blue ball": -1}}}, 422, "score.per_class of blue ball is -1"),
        ({"score": {"per_class": [1]}}, 422, "score.per_class is [1]; expected an object"),
        ({"iou": 10**400}, 422, "iou is 1000"),
        ({"thresholds": 1}, 422, "unknown field 'thresholds'; expected score or iou"),
        ({"source": "none"}, 404, "no source 'none'"),
        ({"source": 7}, 422, "source is no text"),
        ("[1]", 400, "no JSON object"),
        ('{"iou": NaN}', 400, "not JSON"),
        ("{", 400, "not JSON"),
        (b"\xff", 400, "not JSON in UTF-8"),
        ("[" * 5000, 400, "not JSON"),
        (" " * (MOST_BYTES + 1), 413, f"longer than {MOST_BYTES} bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_thresholds_change_nothing(run, asked, status, words):
    before = run.get("/api/thresholds").json
    answer = run.put("/api/thresholds", asked)
    assert answer.status == status
    check_answer(operation_of("set_thresholds"), answer)
    assert words in answer.json["error"]
    assert "\n" not in answer.json["error"]
    assert run.get("/api/thresholds").json == before


def test_body_of_another_type_is_refused(run):
    answer = run.put("/api/thresholds", "{}", **{"Content-Type": "text/plain"})
    assert (answer.status, "application/json" in answer.json["error"]) == (415, True)


# --- sources


def test_shown_source_is_chosen(run):
    answer = run.put("/api/source", {"name": "right"})
    assert (answer.status, answer.json["shown"]) == (200, "right")
    check_answer(operation_of("set_source"), answer)
    assert run.get("/api/state").json["shown"] == "right"
    for body, status in (({"name": "none"}, 404), ({"name": 1}, 422), ({"nam": "left"}, 422)):
        answer = run.put("/api/source", body)
        assert answer.status == status
        check_answer(operation_of("set_source"), answer)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api/state/", 404),
        ("POST", "/api/state", 405),
        ("HEAD", "/stream.mjpg", 405),
        ("GET", "/frame.jpg?source=none", 404),
        ("GET", "/frame.jpg?source=left&source=right", 422),
        ("GET", "/frame.jpg?save=yes", 422),
        ("GET", "/stream.mjpg?source=none", 404),
    ],
)
def test_what_there_is_not_is_told_in_one_line(run, method, path, status):
    answer = run.ask(method, path)
    assert answer.status == status
    if method != "HEAD":
        assert answer.headers.get_content_type() == "application/json"
        assert "\n" not in answer.json["error"]


# --- figures


def test_metrics_are_read_by_prometheus_and_are_the_pipelines_own(bundle):
    odd = 'a "b"\\c\nd'
    with WebRun(bundle, [Camera(odd, num_frames=30), Camera("plain", num_frames=20)]) as run:
        wait_for(lambda: run.pipeline.summary is not None)
        run.server._face.watch.sample()
        text = run.get("/metrics").body.decode()
        families = {each.name: each for each in text_string_to_metric_families(text)}
        for family in families.values():
            assert family.documentation
            assert family.type in ("counter", "gauge", "summary")
        for name, attribute in (
            ("captured_frames", "num_captured"),
            ("delivered_frames", "num_delivered"),
        ):
            rows = {row.labels["source"]: row.value for row in families[f"kestrel_{name}"].samples}
            summaries = run.pipeline.summary.sources
            assert rows == {each.name: getattr(each, attribute) for each in summaries}
        spread = run.pipeline.times.spread("engine")
        stages = {
            (row.name, row.labels.get("quantile")): row.value
            for row in families["kestrel_stage_seconds"].samples
            if row.labels["stage"] == "engine"
        }
        assert stages["kestrel_stage_seconds_count", None] == spread.count
        assert stages["kestrel_stage_seconds", "0.5"] == pytest.approx(spread.p50 / 1e3)
        sums = stages["kestrel_stage_seconds_sum", None]
        assert sums == pytest.approx(spread.mean * spread.count / 1e3)


def test_health_fails_when_no_frame_comes(bundle, monkeypatch):
    monkeypatch.setattr(watching, "LONGEST_QUIET_S", 0.2)
    camera = Camera()
    with WebRun(bundle, [camera]) as run:
        wait_for(lambda: run.get("/healthz").json == {"ok": True, "reason": ""})
        camera.gate.clear()
        wait_for(lambda: run.get("/healthz").status == 503)
        answer = run.get("/healthz")
        check_answer(operation_of("healthz"), answer)
        assert "no frame was delivered for" in answer.json["reason"]
        assert run.get("/api/state").json["health"]["ok"] is False
        camera.gate.set()
        wait_for(lambda: run.get("/healthz").status == 200)


def test_health_fails_when_all_sources_are_over(bundle):
    with WebRun(bundle, [Camera(num_frames=5)]) as run:
        wait_for(lambda: run.get("/healthz").status == 503)
        assert "all sources have ended" in run.get("/healthz").json["reason"]
