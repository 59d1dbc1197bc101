// What a person has labelled, and the file of it that training reads.

import { by, el } from "./dom.js";
import { withPapa } from "./csv.js";

const labels = new Map(); // text -> 1 or 0
const listeners = [];

export const labelOf = (text) => labels.get(text);
export const allLabels = () => [...labels];
export const onLabels = (listener) => listeners.push(listener);

export function setLabel(text, label) {
  if (label === undefined) labels.delete(text);
  else labels.set(text, label);
  refresh();
}

function refresh() {
  const toxic = [...labels.values()].filter((label) => label === 1).length;
  by("labels-status").textContent = labels.size
    ? `${labels.size} labelled: ${toxic} toxic, ${labels.size - toxic} not`
    : "none yet";
  by("labels-download").disabled = by("labels-clear").disabled = !labels.size;
  for (const node of document.querySelectorAll(".label-buttons")) node.refresh();
  for (const listener of listeners) listener();
}

// Two buttons that say and set the label of a comment.
export function labelButtons(text) {
  const button = (label, words) =>
    el(
      "button",
      { type: "button", onclick: () => setLabel(text, labels.get(text) === label ? undefined : label) },
      words,
    );
  const [yes, no] = [button(1, "Toxic"), button(0, "Not toxic")];
  const node = el("div", { class: "row label-buttons", role: "group", "aria-label": "Your label" }, el("span", { class: "muted" }, "Your label"), yes, no);
  node.refresh = () => {
    yes.setAttribute("aria-pressed", String(labels.get(text) === 1));
    no.setAttribute("aria-pressed", String(labels.get(text) === 0));
  };
  node.refresh();
  return node;
}

async function download() {
  const papa = await withPapa();
  const rows = [...labels].map(([text, label]) => ({ text, label }));
  const csv = papa.unparse(rows, { columns: ["text", "label"], quotes: [true, false], newline: "\n" });
  const address = URL.createObjectURL(new Blob([`${csv}\n`], { type: "text/csv" }));
  el("a", { href: address, download: "labels.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export function startLabels() {
  by("labels-download").addEventListener("click", download);
  by("labels-clear").addEventListener("click", () => {
    labels.clear();
    refresh();
    by("labels-title").focus();
  });
}
