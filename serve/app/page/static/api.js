// What the page asks of the server, and the key that it sends.

import { by } from "./dom.js";

const KEY = "toxicity-key";
const TRIES = 5;
const BATCH = 64; // comments of a request
const BATCH_BYTES = 24_000; // larger bodies go a slower way
const MOST_BYTES = 900_000; // of any body
const bytes = new TextEncoder();

export class Refused extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function once(path, body) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    credentials: "omit",
    signal: AbortSignal.timeout(60_000),
  });
}

// The document of an answer. Asks for a key where one is missing, and again what was too much.
export async function ask(path, body) {
  for (let left = TRIES; ; left--) {
    let answer;
    try {
      answer = await once(path, body);
    } catch {
      throw new Refused(0, "The server does not answer; is it running?");
    }
    if (answer.ok) return answer.json();
    if (answer.status === 401 && (await askForKey())) continue;
    if ((answer.status === 429 || answer.status === 503) && left > 1) {
      await pause(1000 * (Number(answer.headers.get("Retry-After")) || 0.5));
      continue;
    }
    let words = "";
    try {
      words = (await answer.json()).error;
    } catch {
      // not one of the server's own answers
    }
    throw new Refused(answer.status, `${answer.status}: ${words || answer.statusText}`);
  }
}

// --- Scores ----------------------------------------------------------------------------
// Probabilities by the server, or by another published version; null for a refused comment.
export async function score(texts, { version = null, progress = () => {} } = {}) {
  const found = { probability: [], version: null };
  for (const batch of batches(texts)) {
    const answer = await scoreBatch(batch, version);
    found.probability.push(...answer.probability);
    found.version = answer.version ?? found.version;
    progress(found.probability.length);
  }
  return found;
}

async function scoreBatch(batch, version) {
  const [path, more] = version === null ? ["/score", {}] : ["/ui/api/compare", { version }];
  try {
    const answer = await ask(path, { text: batch, ...more });
    return { probability: answer.probability, version: answer.model_version };
  } catch (error) {
    if (![400, 413].includes(error.status)) throw error;
    if (batch.length === 1) return { probability: [null], version: null };
    const each = [];
    for (const text of batch) each.push(await scoreBatch([text], version));
    const versions = each.map((one) => one.version).filter(Boolean);
    return { probability: each.flatMap((one) => one.probability), version: versions[0] ?? null };
  }
}

function* batches(texts) {
  let batch = [];
  let size = 0;
  for (const text of texts) {
    const own = sizeOf(text);
    if (batch.length && (batch.length === BATCH || size + own > BATCH_BYTES)) {
      yield batch;
      batch = [];
      size = 0;
    }
    batch.push(text);
    size += own;
  }
  if (batch.length) yield batch;
}

const sizeOf = (text) => bytes.encode(JSON.stringify(text)).length;

// How many variants of a text fit into one request.
export const mostVariants = (text) => Math.floor(MOST_BYTES / (sizeOf(text) + 1));

// All of them in one request.
export async function scoreTogether(texts) {
  const answer = await ask("/score", { text: texts });
  return { probability: answer.probability, version: answer.model_version };
}

// --- The key ---------------------------------------------------------------------------
let asking = null;

// Whether a person gave one; several requests wait for the same answer.
export function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = by("key-dialog");
    const value = by("key-value");
    let given = false;
    const use = (event) => {
      event.preventDefault();
      given = value.value.trim() !== "";
      if (given) sessionStorage.setItem(KEY, value.value.trim());
      dialog.close();
    };
    by("key-form").addEventListener("submit", use);
    by("key-cancel").onclick = () => dialog.close();
    dialog.addEventListener(
      "close",
      () => {
        by("key-form").removeEventListener("submit", use);
        value.value = "";
        asking = null;
        by("key").hidden = false;
        resolve(given);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}
