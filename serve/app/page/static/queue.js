// The comments of a file, the least certain first, labelled by keys.

import { score } from "./api.js";
import { scoreView } from "./card.js";
import { withPapa } from "./csv.js";
import { by, el, told } from "./dom.js";
import { allLabels, onLabels, setLabel } from "./labels.js";
import { onThreshold, state } from "./state.js";

const MOST_BYTES = 5_000_000;
const MOST_ROWS = 5_000;
const TEXT_COLUMNS = ["comment_text", "text", "comment"]; // as training looks for them
const DELIMITERS = [",", ";", "\t"];
const STORE = "toxicity-queue";

let table = null; // { columns, rows } of the file
let items = []; // { text, row, probability }, in the order in which they are shown
let at = 0;
let done = []; // { label, text } of each step, for undo

export const queueTexts = () => items.map((item) => item.text);

// --- The file --------------------------------------------------------------------------
async function open(file) {
  by("start").disabled = true;
  by("column-box").hidden = true;
  if (file.size > MOST_BYTES) {
    throw new Error(`The file has ${file.size} bytes, at most ${MOST_BYTES} are read; split it.`);
  }
  const papa = await withPapa();
  const text = await file.text();
  const delimiter = DELIMITERS.find((mark) => text.split("\n", 1)[0].includes(mark)) ?? ",";
  const read = papa.parse(text, { skipEmptyLines: "greedy", delimiter });
  const wrong = read.errors.find((error) => error.type === "Quotes");
  if (wrong) throw new Error(`Row ${wrong.row} of the file has a quote that does not end.`);
  const [columns, ...rows] = read.data;
  if (!rows.length) throw new Error("The file has no rows below its header.");
  if (rows.length > MOST_ROWS) {
    throw new Error(`The file has ${rows.length} rows, at most ${MOST_ROWS} are read; split it.`);
  }
  table = { columns, rows };
  const lower = columns.map((name) => name.trim().toLowerCase());
  const known = TEXT_COLUMNS.map((name) => lower.indexOf(name)).find((place) => place >= 0);
  by("column").replaceChildren(
    ...columns.map((name, i) => el("option", { value: i, selected: i === known }, name || `column ${i + 1}`)),
  );
  by("column-box").hidden = false;
  by("queue-status").textContent = `${rows.length} rows; choose the column and score them.`;
}

async function scoreRows() {
  const column = Number(by("column").value);
  const seen = new Set();
  const found = table.rows
    .map((cells, i) => ({ text: (cells[column] ?? "").trim(), row: i + 1 }))
    .filter(({ text }) => text && !seen.has(text) && seen.add(text));
  if (!found.length) throw new Error("The column has no text.");
  const bar = by("progress");
  bar.hidden = false;
  try {
    const { probability } = await score(
      found.map((item) => item.text),
      { progress: (ready) => (bar.value = ready / found.length) },
    );
    items = found
      .map((item, i) => ({ ...item, probability: probability[i] }))
      .filter((item) => item.probability !== null);
  } finally {
    bar.hidden = true;
    bar.value = 0;
  }
  at = 0;
  done = [];
  sortRest();
  const left = found.length - items.length;
  const refused = left ? `, ${left} refused` : "";
  by("queue-status").textContent =
    `${items.length} different comments of ${table.rows.length} rows scored${refused}; the least certain come first.`;
  show();
  by("queue-card").focus();
  save();
}

// The comments that are still to come, by distance from the threshold.
function sortRest() {
  const distance = (item) => Math.abs(item.probability - state.threshold);
  const rest = items.slice(at).sort((a, b) => distance(a) - distance(b));
  items = [...items.slice(0, at), ...rest];
}

// --- One comment after the other -------------------------------------------------------
function show() {
  const box = by("queue-card");
  box.hidden = !items.length;
  const item = items[at];
  by("queue-title").textContent = item
    ? `Comment ${at + 1} of ${items.length}, row ${item.row}`
    : "All comments are labelled or skipped";
  by("queue-text").textContent = item ? item.text : "";
  by("queue-score").replaceChildren(...(item ? [scoreView(item.probability)] : []));
  for (const id of ["queue-yes", "queue-no", "queue-skip"]) by(id).disabled = !item;
  by("queue-undo").disabled = !done.length;
  if (box.contains(document.activeElement) && document.activeElement.disabled) box.focus();
}

function step(label) {
  const item = items[at];
  if (!item) return;
  const labelled = new Map(allLabels());
  done.push({ text: item.text, before: labelled.get(item.text), changed: label !== undefined });
  at += 1;
  if (label !== undefined) setLabel(item.text, label);
  const words = label === undefined ? "Skipped." : label ? "Labelled toxic." : "Labelled not toxic.";
  const next = items[at] ? ` Next: ${items[at].text}` : " That was the last one.";
  show();
  say(words + next);
  save();
}

function undo() {
  const last = done.pop();
  if (!last) return;
  at -= 1;
  if (last.changed) setLabel(last.text, last.before);
  show();
  say(`Undone. Again: ${last.text}`);
  save();
}

const say = (words) => (by("queue-status").textContent = words);
const keys = { y: () => step(1), n: () => step(0), s: () => step(), u: undo };

// --- Kept, if the person wants it ------------------------------------------------------
function save() {
  try {
    if (!by("keep").checked) localStorage.removeItem(STORE);
    else localStorage.setItem(STORE, JSON.stringify({ items, at, done, labels: allLabels() }));
  } catch {
    say("The browser has no room for this progress: it is gone when the page closes.");
  }
}

function restore() {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(STORE));
  } catch {
    // kept nothing, or may not
  }
  if (!kept) return;
  by("keep").checked = true;
  ({ items, at, done } = kept);
  for (const [text, label] of kept.labels) setLabel(text, label);
  show();
  say(`Your progress is back: ${at} of ${items.length} done.`);
}

export function startQueue() {
  by("file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    table = null;
    await told(by("queue-status"), by("start"), () => open(file));
    by("start").disabled = !table;
  });
  by("upload").addEventListener("submit", (event) => {
    event.preventDefault();
    told(by("queue-status"), by("start"), scoreRows);
  });
  by("queue-card").addEventListener("keydown", (event) => {
    const action = keys[event.key.toLowerCase()];
    if (!action || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    event.preventDefault();
    action();
  });
  const buttons = { "queue-yes": keys.y, "queue-no": keys.n, "queue-skip": keys.s, "queue-undo": keys.u };
  for (const [id, action] of Object.entries(buttons)) by(id).addEventListener("click", action);
  by("keep").addEventListener("change", save);
  onThreshold(() => {
    if (!items.length) return;
    sortRest();
    show();
  });
  restore();
  onLabels(save);
}
