// Elements of the page and how numbers are written in them.

const SVG = "http://www.w3.org/2000/svg";
const COUNT = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const LARGE_COUNT = new Intl.NumberFormat("en", {
  notation: "compact",
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
});

export const byId = (id) => document.getElementById(id);

/** An element with attributes (`text`: its text) and children; null and undefined are left out. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
export function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Puts choices into a select, the chosen one included; leaves it alone where nothing changed. */
export function setChoices(select, choices, chosen) {
  const options = choices.map(({ value, text }) => make("option", { value, text }));
  const told = (all) => JSON.stringify([...all].map((each) => [each.value, each.text]));
  if (told(options) !== told(select.options)) select.replaceChildren(...options);
  if (chosen !== null && chosen !== undefined) select.value = chosen;
  select.disabled = choices.length === 0;
}

/** Writes a text where it is another one, so that screen readers hear changes alone. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** 1,234 or 1.23M; a dash where there is no number yet. */
export function count(value) {
  if (!isNumber(value)) return "–";
  return (value < 1e6 ? COUNT : LARGE_COUNT).format(value);
}

/** Three digits that matter: 0.42, 4.2, 42, 420; a dash where there is no number yet. */
export function measure(value) {
  if (!isNumber(value)) return "–";
  if (value >= 99.95) return COUNT.format(value);
  return value.toFixed(value < 9.995 ? 2 : 1);
}

/** Milliseconds with their unit, seconds from 10 s on. */
export function duration(ms) {
  if (!isNumber(ms)) return { text: "–", unit: "" };
  if (ms >= 10_000) return { text: measure(ms / 1000), unit: "s" };
  return { text: measure(ms), unit: "ms" };
}
