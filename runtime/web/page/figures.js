// What each source does, in words and numbers.

import { count, duration, make, measure, say } from "./elements.js";

// Name, what stands there, and whether it is worth a colour. Frames that a live source replaced by
// newer ones are dropped on purpose, so those are not.
const FIGURES = [
  ["Frames/s", (source) => ({ text: measure(source.fps) })],
  ["Age p50", (source) => duration(source.age_p50_ms)],
  ["Age p99", (source) => duration(source.age_p99_ms)],
  ["Objects", (source) => ({ text: count(source.num_objects) })],
  ["Delivered", (source) => ({ text: count(source.num_delivered) })],
  ["Dropped", (source) => ({ text: count(source.num_dropped) })],
  ["Corrupt", (source) => ({ text: count(source.num_corrupt), isNotable: source.num_corrupt > 0 })],
  ["Reconnects", (source) => ({
    text: count(source.num_reconnects), isNotable: source.num_reconnects > 0,
  })],
];

class SourceFigures {
  constructor(name) {
    this.state = make("p", { class: "state", role: "status" });
    this.error = make("p", { class: "error" });
    this.cells = FIGURES.map(() => make("dd"));
    const pairs = FIGURES.map(([title], place) => (
      make("div", {}, make("dt", { text: title }), this.cells[place])
    ));
    this.element = make(
      "div", { class: "source" },
      make("div", { class: "source-head" }, make("h3", { text: name }), this.state, this.error),
      make("dl", { class: "figures" }, ...pairs),
    );
  }

  show(source) {
    this.state.dataset.state = source.state;
    say(this.state, source.state);
    say(this.error, source.error ?? "");
    FIGURES.forEach(([, figure], place) => {
      const { text, unit, isNotable } = figure(source);
      const cell = this.cells[place];
      cell.replaceChildren(text, ...(unit ? [" ", make("span", { class: "unit", text: unit })] : []));
      cell.classList.toggle("is-notable", Boolean(isNotable));
    });
  }
}

export class Figures {
  #place;
  #known = new Map();

  constructor(place) {
    this.#place = place;
  }

  show(sources) {
    const names = sources.map((source) => source.name);
    if (names.join("\n") !== [...this.#known.keys()].join("\n")) {
      this.#known = new Map(names.map((name) => [name, new SourceFigures(name)]));
      this.#place.replaceChildren(...[...this.#known.values()].map((each) => each.element));
    }
    for (const source of sources) this.#known.get(source.name).show(source);
  }
}
