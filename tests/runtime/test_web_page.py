"""The page of `--web` in a real browser: what it shows, and what its controls do to the run."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from chromium import WAIT_S, Browser, Page, find_chromium
from test_run_video import BACKEND, command
from tiny_bundle import CLASSES, InputGeometry, paint, write_tiny_bundle

from runtime.pipeline.sinks import FrameResult
from runtime.pipeline.sinks.video_file import VideoFileSink
from runtime.pipeline.sources import Frame

pytest.importorskip("starlette", reason="the web page needs the extra web")
pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium; install Debian's package chromium"
)

DESKTOP = (1280, 800)
PHONE = (390, 844)
NARROW = (320, 640)  # to which a wide page is zoomed at 400 % (WCAG 2.2, 1.4.10)
FILM_WH = (256, 192)
BOXES = {0: (20, 20, 80, 80), 1: (100, 20, 150, 60), 2: (150, 100, 230, 160)}
FAILED = {("fp32", "onnxruntime"): "pass", ("fp32", "openvino"): "fail"}
FINGER_PX = 44
CONTRAST = 4.5  # of text (WCAG 2.2, 1.4.3)
MOST_REQUESTS_S = 10
TOKEN = "correct-horse-battery"
REFUSED = "the server responded with a status of 4"  # what Chromium itself says of a 401 or 409

# Nothing moves any longer: the first picture is there, and so are figures, sliders and card.
IS_READY = """
document.querySelector("#picture-note").hidden
  && document.querySelector("#connection").textContent === "live"
  && document.querySelectorAll("#legend tbody tr").length > 0
  && document.querySelectorAll(".slider").length > 0
  && document.querySelectorAll("#model dd").length > 0
"""
NUM_OBJECTS = """
Number(document.querySelector("#caption").textContent.match(/(\\d+) objects/)?.[1] ?? -1)
"""


@dataclass
class Run:
    """A run of run_video.py with its page.

    Attributes:
        lines: file of its results.
    """

    process: subprocess.Popen[str]
    url: str
    lines: Path

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(WAIT_S)


@contextlib.contextmanager
def running(folder, film, *bundles, port=0, options=()):
    lines = folder / f"{time.monotonic_ns()}.jsonl"
    others = [word for bundle in bundles[1:] for word in ("--web-bundle", bundle)]
    endless = ("--source", film, "--loops", 10**6, "--pace", "--json", lines)
    words = command(bundles[0], *endless, "--web", port, *others, *options, *BACKEND)
    log = folder / f"{lines.stem}.log"
    with log.open("w") as place:
        process = subprocess.Popen(words, stderr=place, stdout=subprocess.DEVNULL, text=True)
    try:
        yield Run(process, find_url(process, log), lines)
    finally:
        process.kill()
        process.wait()


def find_url(process, log):
    """The address that the run says, once it is served."""
    end = time.monotonic() + WAIT_S
    while process.poll() is None and time.monotonic() < end:
        words = [word for word in log.read_text().split() if word.startswith("http://")]
        if words:
            return words[0].partition("#")[0]
        time.sleep(0.05)
    raise AssertionError(f"no page was served: {log.read_text()}")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three rectangles; the blue one moves."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    sink = VideoFileSink(path, size_wh=FILM_WH, fps=10.0)
    for index in range(20):
        x1, y1, x2, y2 = BOXES[0]
        boxes = BOXES | {0: (x1, y1 + 2 * index, x2, y2 + 2 * index)}
        image = paint(FILM_WH[1], FILM_WH[0], boxes)
        sink.write(FrameResult(Frame(image, index, index / 10, 0.0, 0.0, "film"), [], 0.0))
    sink.close()
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """One that is proven, one whose proof failed in part and whose scores are lower."""
    folder = tmp_path_factory.mktemp("bundles")
    geometry = InputGeometry(96, 128)
    passed = {("fp32", "onnxruntime"): "pass", ("fp32", "openvino"): "not run"}
    first = write_tiny_bundle(folder / "first", geometry=geometry, num_samples=0, verdicts=passed)
    low = {"model.fp32.onnx": (0.9, 0.2, 0.1)}
    second = write_tiny_bundle(
        folder / "second", geometry=geometry, num_samples=0, base_scores=low, verdicts=FAILED
    )
    third = write_tiny_bundle(folder / "third", geometry=geometry, num_samples=0)
    return first, second, third


@pytest.fixture(scope="module")
def run(film, bundles, tmp_path_factory):
    with running(tmp_path_factory.mktemp("run"), film, *bundles) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    made = Browser()
    yield made
    made.close()


@contextlib.contextmanager
def opened(browser, url, size_wh=DESKTOP, *, may_be_refused=False, **about):
    """The page; at its end nothing may have gone wrong in it, nor come from elsewhere."""
    with browser.page(url, size_wh, **about) as page:
        yield page
        problems = [each for each in page.problems if not (may_be_refused and REFUSED in each)]
        assert problems == []
        places = {urlsplit(each).netloc for each in page.requests if each.startswith("http")}
        assert places == {urlsplit(url).netloc}
        assert not [each for each in page.requests if not each.startswith(("http:", "blob:"))]


@pytest.fixture
def page(run, browser):
    with opened(browser, run.url) as made:
        made.wait_for(IS_READY)
        yield made
        made.evaluate("document.querySelector('#reset').click()")
        made.wait_for("document.querySelector('#score + output').textContent === '0.30'")


def focus(page: Page, selector: str) -> None:
    page.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")


def text(page: Page, selector: str) -> str:
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def confirmed(page: Page, slider: str) -> str:
    return text(page, f"#{slider} + output")


def wait_for_text(page: Page, selector: str, expected: str) -> None:
    asked = json.dumps(expected)
    page.wait_for(f"document.querySelector({json.dumps(selector)}).textContent.includes({asked})")


def pixels(page: Page) -> np.ndarray:
    """(H, W, 3) of the live picture, as it is drawn."""
    code = "document.querySelector('#picture').toDataURL('image/png').split(',')[1]"
    encoded = np.frombuffer(base64.b64decode(page.evaluate(code)), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


# --- what it shows


def test_picture_moves_and_is_the_annotated_film(page):
    first = pixels(page)
    assert first.shape[:2] == FILM_WH[::-1]
    red = first[120:140, 180:200].astype(int)  # inside the red rectangle
    assert (red[..., 2] - red[..., 0]).min() > 50
    end = time.monotonic() + WAIT_S
    while np.array_equal(pixels(page), first):
        assert time.monotonic() < end, "the picture stands still"


def test_two_screenshots_of_the_page_differ(page):
    first = page.screenshot()
    end = time.monotonic() + WAIT_S
    while page.screenshot() == first:
        assert time.monotonic() < end


def test_figures_of_the_source_go_on(page):
    wait_for_text(page, "#sources .state", "running")
    assert page.evaluate("document.querySelector('#sources .state').dataset.state") == "running"
    delivered = """Number([...document.querySelectorAll(".figures div")].find(
        (each) => each.firstChild.textContent === "Delivered").lastChild.textContent)"""
    before = page.evaluate(delivered)
    page.wait_for(f"{delivered} > {before}")
    assert page.wait_for(f"({NUM_OBJECTS}) === 3")


def test_chart_grows_and_its_stages_can_be_hidden(page):
    page.wait_for("document.querySelectorAll('.chart .area.of-engine').length > 0")
    labels = page.evaluate(
        "[...document.querySelectorAll('.chart text')].map((t) => t.textContent)"
    )
    assert {"−2 min", "now", "0"} <= {label.rstrip(".0") or "0" for label in labels}
    page.evaluate("document.querySelector('.stage:has(.of-engine)').click()")
    page.wait_for("document.querySelectorAll('.chart .area.of-engine').length === 0")
    told = page.evaluate("document.querySelector('.chart svg').getAttribute('aria-label')")
    assert "engine" in told


def test_card_tells_what_was_not_run(page):
    assert "tiny colours" in text(page, "#model")
    assert "Proof: 1 of 2 passed, 1 not run" in text(page, "#model")
    assert "✓ pass" in text(page, ".verdict[data-verdict=pass]")


# --- what its controls do


def test_slider_changes_the_number_of_boxes_within_a_second(page, run):
    page.wait_for(f"({NUM_OBJECTS}) === 3")
    focus(page, "#score")
    page.press("ArrowRight", 40)  # 0.30 -> 0.70, over the red one's score
    page.wait_for("document.querySelector('#score + output').textContent === '0.70'")
    confirmed_at = time.time()
    page.wait_for(f"({NUM_OBJECTS}) === 2")
    later = [each for each in results(run) if each["wall_time_s"] > confirmed_at + 1]
    while not later:
        later = [each for each in results(run) if each["wall_time_s"] > confirmed_at + 1]
    assert {len(each["detections"]) for each in later} == {2}


def results(run):
    lines = run.lines.read_text().splitlines()
    return [json.loads(line) for line in lines[:-1]]  # the last one may be half written


def test_class_has_a_threshold_of_its_own_until_it_lets_go(page):
    slider = f"score-{CLASSES.index('green cone')}"
    focus(page, f"#{slider}")
    page.press("End")
    page.wait_for(f"document.querySelector('#{slider} + output').textContent === 'off'")
    page.wait_for(f"({NUM_OBJECTS}) === 2")
    assert confirmed(page, "score") == "0.30"
    assert "1 of its own" in text(page, "#num-own")
    page.evaluate(f"document.querySelector('#{slider}').closest('.slider').lastChild.click()")
    page.wait_for(f"({NUM_OBJECTS}) === 3")
    assert confirmed(page, slider) == "0.30"
    focused = page.evaluate("document.activeElement.id")
    assert focused == slider  # not lost with the button that is gone


def test_slider_asks_at_most_ten_times_a_second_and_for_its_last_place(page):
    focus(page, "#iou")
    before, begun = num_puts(page), time.monotonic()
    page.press("ArrowRight", 20)
    page.press("ArrowLeft", 11)
    page.wait_for("document.querySelector('#iou + output').textContent === '0.59'")
    took_s = time.monotonic() - begun
    assert 1 <= num_puts(page) - before <= took_s * MOST_REQUESTS_S + 1


def num_puts(page):
    return sum(each.endswith("/api/thresholds") for each in page.requests)


NOTED_PUTS = """
window.sent = [];
window.held = Promise.resolve();
window.fetch = ((before) => async (path, options) => {
  if (options?.method === "PUT") {
    sent.push(JSON.parse(options.body));
    await held;
  }
  return before(path, options);
})(window.fetch);
"""


def test_slider_sends_what_was_changed_and_for_whom(page):
    iou = page.evaluate("Number(document.querySelector('#iou').value)")
    page.evaluate(NOTED_PUTS)
    page.evaluate("{ window.held = new Promise((resolve) => (window.release = resolve)); 0 }")
    focus(page, "#score")
    page.press("ArrowRight", 1)
    page.wait_for("sent.length === 1")
    page.press("ArrowRight", 1)
    page.evaluate(
        """{
        const scope = document.querySelector("#scope");
        scope.value = [...scope.options].find((each) => each.value !== "all").value;
        scope.dispatchEvent(new Event("change"));
        }"""
    )
    focus(page, "#score-1")
    page.press("ArrowRight", 1)
    focus(page, "#iou")
    page.press("ArrowRight", 1)
    page.evaluate("release()")
    page.wait_for("sent.length === 3")
    source = page.evaluate("document.querySelector('#source').value")
    own = {"classes": {CLASSES[1]: 0.33}}
    assert page.evaluate("sent") == [
        {"source": None, "score": {"default": 0.31}},
        {"source": None, "score": {"default": 0.32}},
        {"source": source, "score": own, "iou": round(iou + 0.01, 2)},
    ]
    page.wait_for("document.querySelector('#score-1 + output').textContent === '0.33'")
    assert confirmed(page, "score") == "0.32"


def test_class_may_be_called_like_what_objects_inherit(page):
    told = {
        "classes": ["constructor"],
        "takes_score": True,
        "takes_iou": False,
        "defaults": {"score": 0.3, "iou": None},
        "sources": [
            {"source": "film", "score": {"default": 0.3, "per_class": {}}, "iou": None},
        ],
    }
    code = f"""(async () => {{
      const {{ Thresholds }} = await import("/page/thresholds.js");
      const names = ["main", "none", "classes", "perClass", "numOwn", "reset", "find", "findRow"];
      const parts = Object.fromEntries(names.map((name) => [name, document.createElement("p")]));
      const before = window.fetch;
      window.fetch = async () => new Response({json.dumps(json.dumps(told))});
      try {{
        await new Thresholds(parts, () => {{}}).load("film", true);
      }} finally {{
        window.fetch = before;
      }}
      const row = parts.classes.firstChild;
      return [row.querySelector("output").textContent, row.className];
    }})()"""
    assert page.evaluate(code) == ["0.30", "slider"]


def set_hidden(page, is_hidden):
    told = f"{{ value: {json.dumps(is_hidden)}, configurable: true }}"
    page.evaluate(
        f"""{{
        Object.defineProperty(document, "hidden", {told});
        document.dispatchEvent(new Event("visibilitychange"));
        }}"""
    )


def test_page_that_nobody_sees_holds_no_connection(page):
    page.evaluate(
        """{
        window.signals = [];
        window.fetch = ((before) => (path, options) => {
          if (/events|stream/.test(path)) signals.push(options.signal);
          return before(path, options);
        })(window.fetch);
        }"""
    )
    set_hidden(page, True)
    set_hidden(page, False)
    page.wait_for("signals.length === 2")
    page.wait_for(IS_READY)
    assert page.evaluate("signals.some((each) => each.aborted)") is False
    set_hidden(page, True)
    assert page.evaluate("signals.every((each) => each.aborted)") is True
    set_hidden(page, False)
    page.wait_for("signals.length === 4")
    page.wait_for(IS_READY)


def test_picture_of_a_source_that_stands_still_is_marked_old(page):
    page.wait_for("!document.querySelector('#screen').classList.contains('is-old')")
    page.evaluate(
        """{
        window.fetch = ((before) => async (path, options) => {
          if (path !== "/api/events") return before(path, options);
          const state = await (await before("/api/state")).json();
          for (const each of state.sources) each.state = "stalled";
          const event = new TextEncoder().encode(`data: ${JSON.stringify(state)}\n\n`);
          return new Response(new ReadableStream({ start: (out) => out.enqueue(event) }));
        })(window.fetch);
        }"""
    )
    set_hidden(page, True)
    set_hidden(page, False)
    page.wait_for("document.querySelector('#screen').classList.contains('is-old')")
    still = pixels(page)
    end = time.monotonic() + WAIT_S
    while np.array_equal(pixels(page), still):  # the last pictures come
        assert time.monotonic() < end
    assert page.evaluate("document.querySelector('#screen').classList.contains('is-old')")


def test_second_page_follows_the_first_one(page, run, browser):
    with opened(browser, run.url) as other:
        other.wait_for(IS_READY)
        focus(page, "#score")
        page.press("ArrowLeft", 5)
        other.wait_for("document.querySelector('#score + output').textContent === '0.25'")


def test_pause_stops_the_picture_and_lets_it_go_on(page):
    page.evaluate("document.querySelector('#pause').click()")
    page.wait_for("!document.querySelector('#picture-note').hidden")
    still = pixels(page)
    before = text(page, "#caption")
    page.wait_for(f"document.querySelector('#caption').textContent !== {json.dumps(before)}")
    assert np.array_equal(pixels(page), still)
    page.evaluate("document.querySelector('#pause').click()")
    page.wait_for("document.querySelector('#picture-note').hidden")


def test_snapshot_is_a_file_with_the_whole_picture(page, browser, tmp_path):
    context = page.call("Target.getTargetInfo")["targetInfo"]["browserContextId"]
    browser.call(
        "Browser.setDownloadBehavior",
        behavior="allow",
        browserContextId=context,
        downloadPath=str(tmp_path),
    )
    page.evaluate("document.querySelector('#snapshot').click()")
    end = time.monotonic() + WAIT_S
    while not (found := list(tmp_path.glob("*.jpg"))):
        assert time.monotonic() < end, text(page, "#message-text")
    assert cv2.imread(str(found[0])).shape[:2] == FILM_WH[::-1]


def test_bundle_is_switched_by_keyboard_and_its_failed_proof_is_told(run, browser):
    with opened(browser, run.url) as page:
        page.wait_for(IS_READY)
        focus(page, "#bundle")
        page.press("ArrowDown")
        wait_for_text(page, "#model", "1 failed")
        assert "✗ fail" in text(page, ".verdict[data-verdict=fail]")
        page.wait_for(f"({NUM_OBJECTS}) === 1")
        page.wait_for("!document.querySelector('#bundle').disabled")
        focus(page, "#bundle")
        page.press("ArrowUp")
        wait_for_text(page, "#model", "1 not run")
        page.wait_for(f"({NUM_OBJECTS}) === 3")


def test_bundle_that_is_refused_is_told_in_one_line_and_the_choice_goes_back(run, browser, bundles):
    first, _, third = bundles
    (third / "manifest.json").rename(third / "gone.json")
    try:
        with opened(browser, run.url, may_be_refused=True) as page:
            page.wait_for(IS_READY)
            chosen = page.evaluate("document.querySelector('#bundle').value")
            page.evaluate(
                f"""{{
                const select = document.querySelector("#bundle");
                select.value = {json.dumps(str(third))};
                select.dispatchEvent(new Event("change"));
                }}"""
            )
            page.wait_for("!document.querySelector('#message').hidden")
            assert "manifest" in text(page, "#message-text")
            page.wait_for(f"document.querySelector('#bundle').value === {json.dumps(chosen)}")
            assert page.evaluate(f"({NUM_OBJECTS})") == 3
            page.evaluate("document.querySelector('#message-close').click()")
            assert page.evaluate("document.querySelector('#message').hidden")
    finally:
        (third / "gone.json").rename(third / "manifest.json")


# --- for everybody


def test_every_control_is_reached_by_the_tabulator_and_shows_that_it_is(page):
    expected = page.evaluate(
        """[...document.querySelectorAll("button, select, input, summary")]
        .filter((each) => !each.disabled && each.checkVisibility()).length"""
    )
    reached = []
    for _ in range(expected + 10):
        page.press("Tab")
        told = page.evaluate(
            """(() => {
            const on = document.activeElement;
            const style = getComputedStyle(on);
            const name = on.id || on.textContent || on.getAttribute("aria-label");
            const isSeen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
            return [on.tagName, name, isSeen];
            })()"""
        )
        if told[0] == "BODY" or told[:2] in [each[:2] for each in reached]:
            break
        reached.append(told)
    assert reached[0][0] == "A"  # past the header, to the thresholds
    assert len(reached) == expected + 1
    assert [each for each in reached if not each[2]] == []


def test_controls_have_names_and_the_page_landmarks(page):
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    seen = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    roles = {role for role, _ in seen}
    assert {"banner", "main", "slider", "button", "combobox", "status"} <= roles
    controls = {"button", "slider", "combobox", "textbox", "searchbox", "img", "region"}
    assert [each for each in seen if each[0] in controls and not each[1]] == []
    headings = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((h) => h.tagName)")
    assert headings[0] == "H1"
    assert headings.count("H1") == 1
    assert {"H1", "H2", "H3"} == set(headings)


@pytest.mark.parametrize("size_wh", [PHONE, NARROW], ids=["390", "320"])
def test_phone_shows_everything_in_one_column_for_fingers(run, browser, size_wh):
    with opened(browser, run.url, size_wh, is_phone=True) as page:
        page.wait_for(IS_READY)
        assert page.evaluate("document.documentElement.scrollWidth") == size_wh[0]
        wide = page.evaluate(
            """[...document.querySelectorAll("body *")]
            .filter((each) => each.checkVisibility() && !each.closest(".unseen, .skip"))
            .filter((each) => { const box = each.getBoundingClientRect();
                return box.left < -0.5 || box.right > innerWidth + 0.5; })
            .map((each) => each.outerHTML.slice(0, 100))"""
        )
        assert wide == []
        flat = page.evaluate(
            f"""[...document.querySelectorAll("button, select, input, summary")]
            .filter((each) => each.checkVisibility())
            .filter((each) => {{ const box = each.getBoundingClientRect();
                return box.height < {FINGER_PX} || box.width < {FINGER_PX}; }})
            .map((each) => each.outerHTML.slice(0, 100))"""
        )
        assert flat == []
        lefts = page.evaluate(
            "[...document.querySelectorAll('.panel')].map((e) => e.getBoundingClientRect().left)"
        )
        assert len({left for left in lefts if left is not None}) <= 2  # the hidden form is at 0


CONTRASTS = """
(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if ((colour[3] ?? 1) > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const isDrawn = element instanceof SVGElement;
    const [a, b] = [parse(isDrawn ? style.fill : style.color), behind(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, element.textContent.slice(0, 30)]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    page.set_media(scheme=scheme)
    found = page.wait_for(CONTRASTS)
    assert len(found) > 50
    assert [each for each in found if each[0] < CONTRAST] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, ground[4:-1].split(", "))) > 200) == (scheme == "light")


# --- without a server, without a token


def test_lost_connection_is_told_and_made_again(film, bundles, browser, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(running(tmp_path, film, bundles[0], port=port))
        page = stack.enter_context(browser.page(first.url))
        page.wait_for(IS_READY)
        first.stop()
        wait_for_text(page, "#connection", "connection lost")
        wait_for_text(page, "#picture-note", "Connection lost")
        assert page.evaluate("document.querySelector('#screen').classList.contains('is-old')")
        stack.enter_context(running(tmp_path, film, bundles[0], port=port))
        page.wait_for(IS_READY)
        assert not page.evaluate("document.querySelector('#screen').classList.contains('is-old')")


def test_token_is_asked_for_and_a_wrong_one_told(film, bundles, browser, tmp_path):
    options = ("--web-token", TOKEN)
    with running(tmp_path, film, bundles[0], options=options) as run:
        with opened(browser, run.url, may_be_refused=True) as page:
            page.wait_for("document.activeElement.id === 'token'")
            assert page.evaluate("document.querySelector('#main').hidden")
            page.type("wrong")
            page.press("Enter")
            page.wait_for("document.querySelector('#login-error').textContent !== ''")
            page.evaluate("document.querySelector('#token').value = ''")
            page.type(TOKEN)
            page.press("Enter")
            page.wait_for(IS_READY)
            assert page.evaluate("document.querySelector('#login').hidden")
            stored = page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]")
            assert stored == ["", 0, 0]  # no script can read it
        linked = f"{run.url}#token={TOKEN}"
        with opened(browser, linked) as page:
            page.wait_for(IS_READY)
            assert page.evaluate("location.href") == run.url
