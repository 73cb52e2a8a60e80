// Milliseconds of every stage over the last two minutes: areas on each other, totals as lines.

import { make, makeSvg, measure, say } from "./elements.js";

const SECONDS = 120;
const LINES = new Set(["total", "age"]); // hold the other stages and waits: not to be added to them
const KNOWN = ["capture", "preprocess", "engine", "finish", "draw", "sink"];
const MARGIN = { left: 40, right: 8, top: 8, bottom: 24 }; // px, for the labels of the axes
const NUM_TICKS = 4;

/** The step of an axis from 0 to `most` with about NUM_TICKS steps: 1, 2 or 5 times a power of 10. */
export function stepOf(most) {
  const rough = Math.max(most, 0.01) / NUM_TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((each) => each * power >= rough * 0.999) ?? 10);
}

/** [[from, to), ...] where a history has numbers. */
function stretchesOf(history) {
  const found = [];
  let from = -1;
  for (let place = 0; place <= history.length; place++) {
    const isThere = typeof history[place] === "number";
    if (isThere && from < 0) from = place;
    if (!isThere && from >= 0) {
      found.push([from, place]);
      from = -1;
    }
  }
  return found;
}

const classOf = (name) => `of-${KNOWN.includes(name) || LINES.has(name) ? name : "other"}`;

export class Chart {
  #place;
  #body;
  #at;
  #stages = [];
  #hidden = new Set(["total"]);
  #rows = new Map(); // name -> {button, cells}
  #pointed = null; // seconds ago under the pointer

  /** `place` holds the chart, `table` its legend with the figures, `at` says of when they are. */
  constructor(place, table, at) {
    this.#place = place;
    this.#body = table.tBodies[0];
    this.#at = at;
    new ResizeObserver(() => this.#draw()).observe(place);
    place.addEventListener("pointermove", (event) => this.#point(event));
    place.addEventListener("pointerleave", () => this.#leave());
    place.addEventListener("pointercancel", () => this.#leave());
  }

  show(stages) {
    this.#stages = stages;
    const names = stages.map((stage) => stage.name);
    if (names.join() !== [...this.#rows.keys()].join()) this.#buildLegend(names);
    this.#draw();
  }

  #buildLegend(names) {
    this.#rows = new Map(names.map((name) => [name, this.#row(name)]));
    this.#body.replaceChildren(...[...this.#rows.values()].map((each) => each.row));
  }

  #row(name) {
    const mark = LINES.has(name)
      ? makeSvg("line", { x1: 0, y1: 6, x2: 16, y2: 6, class: classOf(name) })
      : makeSvg("rect", { x: 2, y: 0, width: 12, height: 12, rx: 2, class: classOf(name) });
    const swatch = makeSvg(
      "svg", { class: "swatch", width: 16, height: 12, "aria-hidden": "true" }, mark,
    );
    const button = make(
      "button", { type: "button", class: "stage", "aria-pressed": String(!this.#hidden.has(name)) },
      swatch, name,
    );
    button.addEventListener("click", () => {
      const isShown = this.#hidden.delete(name) || !this.#hidden.add(name);
      button.setAttribute("aria-pressed", String(isShown));
      this.#draw();
    });
    const cells = ["now", "mean", "p50", "p99"].map(() => make("td", { text: "–" }));
    const row = make("tr", {}, make("th", { scope: "row" }, button), ...cells);
    return { row, cells };
  }

  #point(event) {
    const inside = event.clientX - this.#place.getBoundingClientRect().left - MARGIN.left;
    const width = this.#place.clientWidth - MARGIN.left - MARGIN.right;
    const ago = Math.round((1 - inside / width) * (SECONDS - 1));
    this.#pointed = Math.min(Math.max(ago, 0), SECONDS - 1);
    this.#draw();
  }

  #leave() {
    this.#pointed = null;
    this.#draw();
  }

  #showFigures() {
    const ago = this.#pointed ?? 0;
    say(this.#at, this.#pointed === null ? "now" : `${ago} s ago`);
    for (const { name, mean_ms, p50_ms, p99_ms, history_ms } of this.#stages) {
      const { cells } = this.#rows.get(name);
      const figures = [history_ms[history_ms.length - 1 - ago], mean_ms, p50_ms, p99_ms];
      figures.forEach((figure, place) => say(cells[place], measure(figure)));
    }
  }

  #draw() {
    if (this.#stages.length === 0) return;
    this.#showFigures();
    const width = this.#place.clientWidth;
    const height = this.#place.clientHeight;
    if (width < MARGIN.left + MARGIN.right + 10) return;
    const shown = this.#stages.filter((stage) => !this.#hidden.has(stage.name));
    const areas = stack(shown.filter((stage) => !LINES.has(stage.name)));
    const lines = shown.filter((stage) => LINES.has(stage.name));
    const tops = [...areas.map((area) => area.upper), ...lines.map((line) => line.history_ms)];
    const most = Math.max(0, ...tops.flat().filter((value) => typeof value === "number"));
    const step = stepOf(most);
    const end = Math.max(step, Math.ceil(most / step - 0.001) * step);

    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const x = (place, length) =>
      right - ((length - 1 - place) / (SECONDS - 1)) * (right - MARGIN.left);
    const y = (value) => bottom - (value / end) * (bottom - MARGIN.top);
    const svg = makeSvg(
      "svg", { width, height, role: "img", "aria-label": this.#inWords() },
      ...axes({ y, step, end, right, bottom }),
      ...areas.flatMap((area) => shapesOf(area, x, y)),
      ...lines.flatMap((line) => curvesOf(line, x, y)),
    );
    if (this.#pointed !== null) {
      const at = x(SECONDS - 1 - this.#pointed, SECONDS);
      svg.append(makeSvg("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: bottom }));
    }
    this.#place.replaceChildren(svg);
  }

  #inWords() {
    const told = this.#stages.map((stage) => `${stage.name} ${measure(stage.mean_ms)}`);
    return `Mean milliseconds by stage: ${told.join(", ")}`;
  }
}

/** Areas from below: of each stage its lower and upper edge, null where it has no number. */
function stack(stages) {
  const length = Math.max(0, ...stages.map((stage) => stage.history_ms.length));
  const sums = new Array(length).fill(0);
  return stages.map(({ name, history_ms }) => {
    const shift = length - history_ms.length;
    const values = sums.map((_, place) => history_ms[place - shift] ?? null);
    const lower = [...sums];
    values.forEach((value, place) => (sums[place] += value ?? 0));
    const upper = values.map((value, place) => (value === null ? null : sums[place]));
    return { name, lower, upper };
  });
}

function shapesOf({ name, lower, upper }, x, y) {
  return stretchesOf(upper).map(([from, to]) => {
    const points = (edge) => {
      const found = [];
      for (let place = from; place < to; place++) {
        found.push(`${x(place, upper.length).toFixed(1)},${y(edge[place]).toFixed(1)}`);
      }
      if (to - from === 1) found.push(`${(x(from, upper.length) - 2).toFixed(1)},${found[0].split(",")[1]}`);
      return found;
    };
    const path = `M${points(upper).join("L")}L${points(lower).reverse().join("L")}Z`;
    return makeSvg("path", { class: `area ${classOf(name)}`, d: path });
  });
}

function curvesOf({ name, history_ms }, x, y) {
  return stretchesOf(history_ms).map(([from, to]) => {
    const points = history_ms.slice(from, to).map(
      (value, place) => `${x(from + place, history_ms.length).toFixed(1)},${y(value).toFixed(1)}`,
    );
    return makeSvg("path", { class: `curve ${classOf(name)}`, d: `M${points.join("L")}` });
  });
}

function axes({ y, step, end, right, bottom }) {
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  const marks = [];
  for (let value = 0; value <= end + step / 2; value += step) {
    const at = Math.round(y(value)) + 0.5;
    marks.push(
      makeSvg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: at, y2: at }),
      makeSvg("text", {
        x: MARGIN.left - 8, y: at + 4, "text-anchor": "end", text: value.toFixed(digits),
      }),
    );
  }
  const middle = (MARGIN.left + right) / 2;
  const labels = [[MARGIN.left, "start", "−2 min"], [middle, "middle", "−1 min"], [right, "end", "now"]];
  for (const [at, anchor, text] of labels) {
    marks.push(makeSvg("text", { x: at, y: bottom + 18, "text-anchor": anchor, text }));
  }
  return marks;
}
