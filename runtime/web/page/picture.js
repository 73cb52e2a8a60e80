// The live picture: parts of /stream.mjpg drawn on a canvas, always the newest one that has come.
//
// An <img> would do it in one line, but tells neither that a stream has ended nor why it was refused.

import { send } from "./requests.js";

const HEAD_END = "\r\n\r\n";
const LONGEST_HEAD = 4096; // bytes
const LARGEST_PICTURE = 64 << 20; // bytes

/** The bodies of a multipart stream whose parts say their Content-Length. */
export async function* partsOf(stream) {
  const reader = stream.getReader();
  let held = new Uint8Array(1 << 18);
  let size = 0;
  const more = async () => {
    const { done, value } = await reader.read();
    if (done) return false;
    if (size + value.length > held.length) {
      const grown = new Uint8Array(Math.max(2 * held.length, size + value.length));
      grown.set(held.subarray(0, size));
      held = grown;
    }
    held.set(value, size);
    size += value.length;
    return true;
  };
  try {
    for (;;) {
      let end;
      while ((end = findHeadEnd(held.subarray(0, Math.min(size, LONGEST_HEAD)))) < 0) {
        if (size >= LONGEST_HEAD) throw new Error("The stream is no stream of pictures.");
        if (!(await more())) return;
      }
      const length = lengthIn(held.subarray(0, end));
      while (size < end + length) {
        if (!(await more())) return;
      }
      yield held.slice(end, end + length);
      held.copyWithin(0, end + length, size);
      size -= end + length;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function findHeadEnd(bytes) {
  for (let place = 0; place + HEAD_END.length <= bytes.length; place++) {
    if (bytes[place] === 13 && bytes[place + 1] === 10 && bytes[place + 2] === 13
      && bytes[place + 3] === 10) return place + HEAD_END.length;
  }
  return -1;
}

function lengthIn(head) {
  const found = /content-length:\s*(\d+)/i.exec(new TextDecoder("latin1").decode(head));
  const length = found ? Number(found[1]) : -1;
  if (length < 0 || length > LARGEST_PICTURE) throw new Error("A picture came without its size.");
  return length;
}

export class Picture {
  #canvas;
  #onNote;
  #abort = null;
  #newest = null;
  #isDrawing = false;

  /** `onNote(text)` is told why nothing moves, and "" when pictures come. */
  constructor(canvas, onNote) {
    this.#canvas = canvas;
    this.#onNote = onNote;
  }

  get isOpen() {
    return this.#abort !== null;
  }

  /** Shows a source until `stop`; `onEnd` is called where the stream ends by itself. */
  async show(source, onEnd) {
    this.stop();
    const abort = new AbortController();
    this.#abort = abort;
    let reason = "The stream has ended.";
    try {
      const path = `/stream.mjpg?source=${encodeURIComponent(source)}`;
      const answer = await send(path, { signal: abort.signal });
      for await (const jpeg of partsOf(answer.body)) {
        this.#newest = { jpeg, abort };
        if (!this.#isDrawing) this.#draw();
      }
    } catch (error) {
      if (abort.signal.aborted) return;
      reason = error.message;
    }
    if (this.#abort !== abort) return;
    this.#abort = null;
    this.#onNote(reason);
    onEnd();
  }

  stop() {
    this.#abort?.abort();
    this.#abort = null;
    this.#newest = null;
  }

  async #draw() {
    this.#isDrawing = true;
    while (this.#newest !== null) {
      const { jpeg, abort } = this.#newest;
      this.#newest = null;
      try {
        const bitmap = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
        if (abort === this.#abort) this.#paint(bitmap);
        bitmap.close();
      } catch {
        // One damaged picture; the next one comes.
      }
    }
    this.#isDrawing = false;
  }

  #paint(bitmap) {
    const canvas = this.#canvas;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    canvas.getContext("2d", { alpha: false }).drawImage(bitmap, 0, 0);
    this.#onNote("");
  }
}
