// The page's parts, put together: what the server tells goes to them, what people do to the server.

import { showCard } from "./card.js";
import { Chart } from "./chart.js";
import { Connection } from "./connection.js";
import { byId, count, duration, measure, say, setChoices } from "./elements.js";
import { Figures } from "./figures.js";
import { Picture } from "./picture.js";
import { ask, send } from "./requests.js";
import { Thresholds } from "./thresholds.js";

const STREAM_RETRY_MS = 2000;
const SWITCH_PATIENCE_MS = 600_000; // an engine may have to be built

const PAUSED = "Paused: the run goes on.";

const page = {
  shown: null, // the source in the picture
  sources: [],
  bundle: null, // path, as the state told last
  isSwitching: false,
  version: null, // of the thresholds
  isUp: false,
  isRunning: true, // the source in the picture
  isPaused: false,
  retry: 0,
};

// --- what is said

function tell(error) {
  if (error.isTokenNeeded) {
    onTokenNeeded();
    return;
  }
  say(byId("message-text"), error.message);
  byId("message").hidden = false;
}

function hush() {
  byId("message").hidden = true;
}

function setConnection(state, text) {
  byId("connection").dataset.state = state;
  say(byId("connection"), text);
}

// --- the picture

const picture = new Picture(byId("picture"), (note) => note === "" ? onPicture() : noteOn(note));

function noteOn(text) {
  say(byId("picture-note"), text);
  byId("picture-note").hidden = text === "";
}

function onPicture() {
  noteOn("");
  markOld();
}

/** A picture is old where none follows it: its source stands still. */
function markOld() {
  byId("screen").classList.toggle("is-old", !page.isUp || !page.isRunning);
}

function startPicture() {
  clearTimeout(page.retry);
  if (!page.isUp || page.isPaused || document.hidden || page.shown === null) return;
  picture.show(page.shown, () => {
    byId("screen").classList.add("is-old");
    page.retry = setTimeout(startPicture, STREAM_RETRY_MS);
  });
}

function stopPicture(note) {
  clearTimeout(page.retry);
  picture.stop();
  noteOn(note);
}

function showSource(name) {
  page.shown = name;
  byId("source").value = name;
  byId("picture").setAttribute("aria-label", `Annotated live picture of ${name}`);
  stopPicture(page.isPaused ? PAUSED : "Waiting for the first picture.");
  startPicture();
}

async function takeSnapshot() {
  const path = `/frame.jpg?source=${encodeURIComponent(page.shown)}&save=1`;
  const answer = await send(path);
  const named = /filename="?([^";]+)/.exec(answer.headers.get("Content-Disposition") ?? "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = named ? named[1] : "frame.jpg";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- the state

const chart = new Chart(byId("chart"), byId("legend"), byId("at"));
const figures = new Figures(byId("sources"));
const thresholds = new Thresholds({
  main: byId("main-sliders"), classes: byId("class-sliders"), perClass: byId("per-class"),
  none: byId("no-thresholds"), numOwn: byId("num-own"), reset: byId("reset"), find: byId("find"), findRow: byId("find-row"),
}, tell);

function onState(state) {
  figures.show(state.sources);
  chart.show(state.stages);
  showCaption(state.sources.find((source) => source.name === page.shown));
  followBundle(state);
  followThresholds(state.thresholds_version);
}

/** Another page may have set them. */
function followThresholds(version) {
  if (version === page.version || thresholds.isBusy) return;
  const isFirst = page.version === null;
  page.version = version;
  if (!isFirst) loadThresholds().catch(tell);
}

function showCaption(source) {
  if (source === undefined) return;
  const wasRunning = page.isRunning;
  page.isRunning = ["opening", "running"].includes(source.state); // the first picture is new
  if (page.isRunning !== wasRunning) markOld();
  const age = duration(source.age_ms);
  const parts = [`${measure(source.fps)} frames/s`, `${count(source.num_objects)} objects`];
  if (age.unit) parts.push(`${age.text} ${age.unit} old`);
  say(byId("caption"), parts.join(" · "));
}

/** Tells how a switch goes; what has changed with the bundle is read anew. */
function followBundle({ bundle, switching, health }) {
  const isNew = page.bundle !== null && page.bundle !== bundle.path;
  page.bundle = bundle.path;
  page.isSwitching = switching !== null;
  byId("bundle").disabled = page.isSwitching || byId("bundle").options.length < 2;
  if (page.isSwitching) setConnection("reconnecting", "switching the bundle");
  else if (health?.ok === false) setConnection("stalled", health.reason);
  else setConnection("running", "live");
  if (isNew) readBundle().catch(tell);
}

function loadThresholds() {
  return thresholds.load(page.shown, byId("scope").value === "all");
}

async function readBundle() {
  const [card, { bundles }] = await Promise.all([ask("/api/card"), ask("/api/bundles")]);
  showCard(byId("model"), card);
  const choices = bundles.map(({ path, name, problem }) => ({
    value: path, text: problem ? `${name}: cannot be used` : name,
  }));
  setChoices(byId("bundle"), choices, bundles.find((each) => each.is_running)?.path);
  byId("bundle").disabled = choices.length < 2 || page.isSwitching;
  await loadThresholds();
}

// --- connection and token

async function onUp(state) {
  page.isUp = true;
  page.bundle = null;
  showLogin(false);
  page.sources = state.sources.map((source) => source.name);
  setChoices(byId("source"), page.sources.map((name) => ({ value: name, text: name })), page.shown);
  byId("source").disabled = page.sources.length < 2;
  byId("scope-row").hidden = page.sources.length < 2;
  const isKnown = page.sources.includes(page.shown);
  showSource(isKnown ? page.shown : state.shown ?? page.sources[0]);
  await readBundle();
}

function onDown(reason) {
  page.isUp = false;
  setConnection("failed", "connection lost, trying again");
  byId("screen").classList.add("is-old");
  stopPicture(`Connection lost: ${reason}`);
}

function showLogin(isNeeded) {
  byId("login").hidden = !isNeeded;
  byId("main").hidden = isNeeded;
  byId("choosers").hidden = isNeeded;
}

function onTokenNeeded() {
  page.isUp = false;
  stopPicture("");
  setConnection("stalled", "token needed");
  showLogin(true);
  byId("token").focus();
}

const connection = new Connection({ onUp, onState, onDown, onTokenNeeded });

async function connect() {
  if (!document.hidden) await connection.open();
}

async function logIn(token) {
  try {
    await ask("/api/login", { method: "POST", body: { token } });
  } catch (error) {
    onTokenNeeded();
    say(byId("login-error"), error.message);
    return;
  }
  byId("token").value = "";
  say(byId("login-error"), "");
  await connect();
}

// --- what people do

byId("message-close").addEventListener("click", hush);

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  logIn(byId("token").value);
});

byId("source").addEventListener("change", async (event) => {
  showSource(event.target.value);
  try {
    await ask("/api/source", { method: "PUT", body: { name: page.shown } });
    await loadThresholds();
  } catch (error) {
    tell(error);
  }
});

byId("bundle").addEventListener("change", async (event) => {
  hush();
  try {
    const body = { path: event.target.value };
    await ask("/api/bundle", { method: "PUT", body, patienceMs: SWITCH_PATIENCE_MS });
  } catch (error) {
    tell(error);
  }
  await readBundle().catch(tell); // after a failure the choice goes back to what runs
});

byId("scope").addEventListener("change", () => loadThresholds().catch(tell));

byId("pause").addEventListener("click", () => {
  page.isPaused = !page.isPaused;
  byId("pause").setAttribute("aria-pressed", String(page.isPaused));
  if (page.isPaused) stopPicture(PAUSED);
  else startPicture();
});

byId("snapshot").addEventListener("click", () => takeSnapshot().catch(tell));

// A page that nobody sees takes no pictures, and hears nothing.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    connect();
    return;
  }
  connection.close();
  if (!page.isPaused) stopPicture("");
});

const linked = /^#token=(.+)$/.exec(location.hash);
if (linked) {
  history.replaceState(null, "", location.pathname);
  logIn(decodeURIComponent(linked[1]));
} else {
  connect();
}
