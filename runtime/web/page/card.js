// The model's card and its proof: what was held against PyTorch, and how that ended.

import { make } from "./elements.js";

const MARKS = { pass: "✓ pass", fail: "✗ fail" };
const FIRST_SCORES = 3; // the others are folded
const MANY_CLASSES = 12;

/** Fills `place` with what /api/card told. */
export function showCard(place, card) {
  place.replaceChildren(
    make("div", {}, facts(factsOf(card)), ...scoresOf(card.scores)),
    make("div", {}, ...proofOf(card)),
  );
}

function factsOf(card) {
  const name = [card.model, card.variant].filter(Boolean).join(" ");
  const size = card.input ? `${card.input.width} × ${card.input.height} px` : "";
  const engine = [card.precision, card.backend].filter(Boolean).join(" on ");
  return [
    ["Model", name], ["Task", card.task], ["Classes", classesOf(card.classes ?? [])],
    ["Input", size], ["Engine", engine], ["Device", card.device],
    ["Licence", card.licence || "not stated"],
  ];
}

/** Their names; many are folded under their number. */
function classesOf(classes) {
  const names = classes.join(", ");
  if (classes.length <= MANY_CLASSES) return names;
  return make("details", {}, make("summary", { text: classes.length }), names);
}

function facts(pairs) {
  const told = pairs.filter(([, content]) => content);
  return make(
    "dl", { class: "facts" },
    ...told.flatMap(([title, content]) => [make("dt", { text: title }), make("dd", {}, content)]),
  );
}

function scoresOf(scores) {
  const pairs = Object.entries(scores ?? {}).map(([name, score]) => [name, score.toFixed(3)]);
  if (pairs.length === 0) return [make("p", { class: "scores quiet", text: "No scores." })];
  const first = facts(pairs.slice(0, FIRST_SCORES));
  first.classList.add("scores");
  if (pairs.length <= FIRST_SCORES) return [first];
  const rest = make("details", {}, make("summary", { text: "All scores" }),
    facts(pairs.slice(FIRST_SCORES)));
  return [first, rest];
}

function proofOf({ proof, precision, backend }) {
  if (!proof || proof.stages.length === 0) {
    const text = "Not verified: this bundle holds no proof.";
    return [make("p", { class: "error", text })];
  }
  const stages = [...proof.stages];
  if (!stages.some((each) => each.is_running)) {
    stages.push({ precision, backend, verdict: "not run", is_running: true });
  }
  const hasFailed = stages.some((each) => each.verdict === "fail");
  const line = make("p", { class: hasFailed ? "error" : null });
  line.textContent = inWords(stages, proof);
  const head = make("thead", {}, make("tr", {},
    make("th", { scope: "col", text: "Stage" }), make("th", { scope: "col", text: "Verdict" }),
    make("th", { scope: "col", text: "Against PyTorch" })));
  const caption = make("caption", { class: "unseen", text: "Proof of each stage" });
  const body = make("tbody", {}, ...stages.map(rowOf));
  return [line, make("table", { class: "verdicts" }, caption, head, body)];
}

function inWords(stages, { data, num_images: numImages }) {
  const num = (verdict) => stages.filter((each) => each.verdict === verdict).length;
  const [passed, failed] = [num("pass"), num("fail")];
  const notRun = stages.length - passed - failed;
  const parts = [`Proof: ${passed} of ${stages.length} passed`];
  if (failed > 0) parts.push(`${failed} failed`);
  if (notRun > 0) parts.push(`${notRun} not run`);
  const where = [numImages ? `${numImages} frames` : "", data].filter(Boolean).join(" of ");
  return `${parts.join(", ")}${where ? `, on ${where}` : ""}.`;
}

function rowOf({ precision, backend, verdict, ap, detail, reasons, is_running: isRunning }) {
  const stage = make("th", { scope: "row", text: `${precision} ${backend}` });
  if (isRunning) stage.append(make("br"), make("strong", { text: "runs now" }));
  const figures = [typeof ap === "number" ? `AP ${ap.toFixed(3)}` : "", detail].filter(Boolean);
  const told = make("td", { class: "quiet", text: figures.join("; ") });
  for (const reason of reasons ?? []) told.append(make("p", { class: "error", text: reason }));
  const shown = MARKS[verdict] ?? `– ${verdict}`;
  return make("tr", {}, stage,
    make("td", { class: "verdict", "data-verdict": verdict, text: shown }), told);
}
