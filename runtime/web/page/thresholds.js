// Sliders that act on the running graph. A number beside a slider is what the server confirmed.

import { make, say } from "./elements.js";
import { ask } from "./requests.js";

const PAUSE_MS = 100; // between two requests
const FEW_CLASSES = 6; // are shown at once; more are folded
const MANY_CLASSES = 12; // get a field to find one
const OFF = 1; // no score exceeds it

/** What holds of a class; a class may be called like what every object inherits. */
const held = (score, name) =>
  Object.hasOwn(score.per_class, name) ? score.per_class[name] : score.default;

const only = (name, value) => Object.fromEntries([[name, value]]);

const written = (value) => (value >= OFF ? "off" : value.toFixed(2));

/** One line: name, slider, the confirmed number, and a button that lets go of an own number. */
class Slider {
  constructor(name, { id, onInput, onClear, canBeOff = true }) {
    this.name = name;
    this.canBeOff = canBeOff;
    this.input = make("input", { type: "range", id, min: 0, max: 1, step: 0.01 });
    this.output = make("output", { for: id, "aria-live": "off", text: "–" });
    this.clear = onClear && make("button", {
      type: "button", class: "plain", "aria-label": `${name}: follow all classes`, text: "↺",
      title: "Follow all classes", disabled: true,
    });
    this.row = make(
      "div", { class: "slider" },
      make("label", { for: id, text: name, title: name }), this.input, this.output, this.clear,
    );
    this.input.addEventListener("input", () => onInput(this.input.valueAsNumber));
    this.clear?.addEventListener("click", () => {
      this.input.focus(); // the button is about to be disabled
      onClear();
    });
  }

  place(value) {
    this.input.value = value;
    this.input.setAttribute("aria-valuetext", this.#text(value));
  }

  confirm(value, isOwn = false) {
    say(this.output, this.#text(value));
    this.row.classList.toggle("is-own", isOwn);
    if (this.clear) this.clear.disabled = !isOwn;
  }

  wait(isWaiting) {
    this.row.classList.toggle("is-waiting", isWaiting);
  }

  #text(value) {
    return this.canBeOff ? written(value) : value.toFixed(2);
  }
}

export class Thresholds {
  #on;
  #parts;
  #shown = null; // the source whose numbers are shown
  #target = null; // the source that they are set for, or null for all
  #told = null; // as the server answered
  #confirmed = null; // {score, iou} of the shown source in it
  #wanted = null; // {score, perClass: Map, iou}
  #wishes = []; // what people changed and is not sent yet: bodies of requests, each for its target
  #isSending = false;
  #sentAt = 0;
  #sliders = new Map(); // class -> Slider
  #score = null;
  #iou = null;

  /**
   * `parts` are the elements main, none, classes, perClass (details), numOwn, reset, find, findRow;
   * `onError(error)` is told what was refused.
   */
  constructor(parts, onError) {
    this.#parts = parts;
    this.#on = { error: onError };
    parts.reset.addEventListener("click", () => this.#reset());
    parts.find.addEventListener("input", () => this.#filter());
  }

  get isBusy() {
    return this.#isSending;
  }

  /** Reads what holds of the source `shown`; changes are for it alone, or (`isForAll`) for all. */
  async load(shown, isForAll) {
    this.#shown = shown;
    this.#target = isForAll ? null : shown;
    const told = await ask("/api/thresholds");
    if (!this.#isSending) this.#take(told); // else what is being sent is newer, and its answer, too
  }

  #take(told) {
    const shape = ({ classes, takes_score, takes_iou }) =>
      JSON.stringify([classes, takes_score, takes_iou]);
    const isNew = this.#told === null || shape(told) !== shape(this.#told);
    this.#hold(told);
    this.#wishes = [];
    const { score, iou } = this.#confirmed;
    this.#wanted = { score: score.default, perClass: new Map(Object.entries(score.per_class)), iou };
    if (isNew) this.#build(told);
    this.#showConfirmed();
    this.#showWanted();
  }

  #hold(told) {
    this.#told = told;
    const { sources } = told;
    this.#confirmed = sources.find((each) => each.source === this.#shown) ?? sources[0];
  }

  #build({ classes, takes_score: takesScore, takes_iou: takesIou }) {
    const { main, perClass, findRow, find, none } = this.#parts;
    this.#score = !takesScore ? null : new Slider("All classes", {
      id: "score", onInput: (value) => this.#want({ score: { default: value } }),
    });
    this.#iou = !takesIou ? null : new Slider("NMS IoU", {
      id: "iou", canBeOff: false, onInput: (value) => this.#want({ iou: value }),
    });
    const sliders = [this.#score, this.#iou].filter((each) => each !== null);
    main.replaceChildren(...sliders.map((each) => each.row));
    none.hidden = sliders.length > 0;
    this.#parts.reset.disabled = sliders.length === 0;
    perClass.hidden = !takesScore;
    const named = takesScore ? classes : [];
    this.#sliders = new Map(named.map((name, index) => [name, new Slider(name, {
      id: `score-${index}`,
      onInput: (value) => this.#want({ score: { classes: only(name, value) } }),
      onClear: () => this.#want({ score: { classes: only(name, null) } }),
    })]));
    this.#parts.classes.replaceChildren(...[...this.#sliders.values()].map((each) => each.row));
    perClass.open = classes.length <= FEW_CLASSES;
    findRow.hidden = classes.length <= MANY_CLASSES;
    find.value = "";
  }

  /** Notes a change for the target of now; only what was touched is sent, so others' stay. */
  #want({ score, iou }) {
    const { default: all, per_class: perClass, classes } = score ?? {};
    if (all !== undefined) this.#wanted.score = all;
    if (iou !== undefined) this.#wanted.iou = iou;
    if (perClass) this.#wanted.perClass.clear();
    for (const [name, value] of Object.entries(classes ?? {})) {
      if (value === null) this.#wanted.perClass.delete(name);
      else this.#wanted.perClass.set(name, value);
    }
    const last = this.#wishes.at(-1);
    if (last === undefined || last.source !== this.#target || perClass) {
      this.#wishes.push({ source: this.#target, score, iou }); // undefined is not sent
    } else {
      last.iou = iou ?? last.iou;
      const before = last.score?.classes;
      const both = before || classes ? { classes: { ...before, ...classes } } : {};
      if (score) last.score = { ...last.score, ...score, ...both };
    }
    this.#showWanted();
    this.#send();
  }

  #reset() {
    if (this.#told === null) return;
    const { score, iou } = this.#told.defaults;
    this.#want({
      ...(this.#score && { score: { default: score, per_class: {} } }), ...(this.#iou && { iou }),
    });
  }

  /** One request at a time, at most ten a second; the last wish is always sent. */
  async #send() {
    if (this.#isSending) return;
    this.#isSending = true;
    try {
      while (this.#wishes.length > 0) {
        const rest = this.#sentAt + PAUSE_MS - performance.now();
        if (rest > 0) await new Promise((resolve) => setTimeout(resolve, rest));
        this.#sentAt = performance.now();
        const told = await ask("/api/thresholds", { method: "PUT", body: this.#wishes.shift() });
        if (this.#wishes.length === 0) this.#take(told);
        else {
          this.#hold(told);
          this.#showConfirmed();
        }
      }
    } catch (error) {
      this.#take(this.#told); // sliders go back to what holds
      this.#on.error(error);
    } finally {
      this.#isSending = false;
    }
  }

  #showConfirmed() {
    const { score, iou } = this.#confirmed;
    this.#score?.confirm(score.default);
    this.#iou?.confirm(iou);
    for (const [name, slider] of this.#sliders) {
      slider.confirm(held(score, name), Object.hasOwn(score.per_class, name));
    }
    const numOwn = Object.keys(score.per_class).length;
    say(this.#parts.numOwn, numOwn === 0 ? "" : ` (${numOwn} of its own)`);
  }

  #showWanted() {
    const { score, perClass, iou } = this.#wanted;
    const confirmed = this.#confirmed.score;
    this.#score?.place(score);
    this.#score?.wait(score !== confirmed.default);
    this.#iou?.place(iou);
    this.#iou?.wait(iou !== this.#confirmed.iou);
    for (const [name, slider] of this.#sliders) {
      const value = perClass.get(name) ?? score;
      slider.place(value);
      slider.wait(value !== held(confirmed, name));
    }
  }

  #filter() {
    const asked = this.#parts.find.value.trim().toLowerCase();
    for (const [name, slider] of this.#sliders) {
      slider.row.hidden = !name.toLowerCase().includes(asked);
    }
  }
}
