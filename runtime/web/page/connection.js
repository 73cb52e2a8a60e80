// The state once a second, for as long as the page is seen; lost connections are made again.

import { ask, RequestError, send } from "./requests.js";

const SILENCE_MS = 5000; // events come once a second
const RETRY_MS = 2000;

/** The data of server-sent events, parsed as JSON; what a stream ends with unfinished is left out. */
export async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (held + value).replaceAll("\r\n", "\n").split("\n\n");
      held = events.pop();
      for (const event of events) {
        const lines = event.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length > 0) yield JSON.parse(lines.map((line) => line.slice(5)).join("\n"));
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

export class Connection {
  #on;
  #abort = new AbortController();
  #timer = 0;

  /**
   * `on` has onUp(state), awaited each time that the connection stands; onState(state), once a
   * second; onDown(reason), when it is lost; onTokenNeeded().
   *
   * An EventSource would not tell why it was refused, hence the reading by hand.
   */
  constructor(on) {
    this.#on = on;
  }

  async open() {
    this.#abort.abort();
    const abort = new AbortController();
    this.#abort = abort;
    let lost;
    try {
      const state = await ask("/api/state");
      if (abort !== this.#abort) return; // closed meanwhile
      await this.#on.onUp(state);
      if (abort !== this.#abort) return;
      this.#on.onState(state);
      await this.#listen(abort);
      lost = new RequestError("the server has ended the connection");
    } catch (error) {
      lost = error;
    }
    if (abort !== this.#abort) return; // opened anew meanwhile
    clearTimeout(this.#timer);
    if (lost.isTokenNeeded) {
      this.#on.onTokenNeeded();
      return;
    }
    this.#on.onDown(lost.name === "AbortError" ? "the server is silent" : lost.message);
    this.#timer = setTimeout(() => this.open(), RETRY_MS);
  }

  /** Lets go until `open`: a browser has few connections to a host for all its pages together. */
  close() {
    this.#abort.abort();
    this.#abort = new AbortController();
    clearTimeout(this.#timer);
  }

  async #listen(abort) {
    const answer = await send("/api/events", { signal: abort.signal });
    const watch = () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    watch();
    for await (const state of eventsOf(answer.body)) {
      watch();
      this.#on.onState(state);
    }
  }
}
