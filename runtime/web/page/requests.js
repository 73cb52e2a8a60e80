// What the page asks of the server it came from.

const PATIENCE_MS = 10_000;

/** A request that was not answered, or with an error; its message is one line for people. */
export class RequestError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  get isTokenNeeded() {
    return this.status === 401;
  }
}

/** The JSON that a path answers; `body` is sent as JSON. Throws RequestError. */
export async function ask(path, { method = "GET", body, patienceMs = PATIENCE_MS } = {}) {
  const sent = body === undefined
    ? {}
    : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  const answer = await send(path, { method, ...sent, signal: AbortSignal.timeout(patienceMs) });
  if (answer.status === 204) return null;
  try {
    return await answer.json();
  } catch {
    throw new RequestError(`${path} was not answered in full. Try again.`);
  }
}

/** A response that is no error; its body is the caller's to read. Throws RequestError. */
export async function send(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(`${path} was not answered: is the run still going?`);
  }
  if (!answer.ok) throw new RequestError(await reasonOf(answer), answer.status);
  return answer;
}

async function reasonOf(answer) {
  const unexplained = `The server answered ${answer.status} ${answer.statusText}.`;
  try {
    const told = await answer.json();
    return typeof told.error === "string" ? told.error : unexplained;
  } catch {
    return unexplained;
  }
}
