// Two published versions side by side.

import { score } from "./api.js";
import { changed } from "./comments.js";
import { by, el, short, table, told } from "./dom.js";
import { queueTexts } from "./queue.js";
import { comments, state } from "./state.js";

const MOST_ROWS = 100; // shown

export function listVersions() {
  const several = state.versions.length > 1;
  const alone = state.versions.length
    ? `Only version ${state.version} is published: nothing to compare it with. \`make export\` publishes another.`
    : "The published versions cannot be read; `make versions` on the server's machine tells why.";
  by("versions-note").textContent = several
    ? "What serves is asked at the server, another version in the offline core. Files are verified first, which takes a moment."
    : alone;
  by("versions").querySelector("button").disabled = !several;
  const served = state.versions.find((one) => one.serves);
  const other = state.versions.find((one) => !one.serves);
  for (const [id, chosen] of [["version-a", served], ["version-b", other]]) {
    by(id).replaceChildren(...state.versions.map((one) => option(one, one === chosen)));
    by(id).disabled = !several;
  }
}

function option(one, selected) {
  const words = [`version ${one.version}`, one.precision, one.serves ? "serves" : null];
  return el("option", { value: one.version, selected }, words.filter(Boolean).join(", "));
}

async function compare() {
  const [a, b] = [Number(by("version-a").value), Number(by("version-b").value)];
  if (a === b) throw new Error("Choose two different versions.");
  const file = by("compared").value === "file";
  const texts = file ? queueTexts() : comments();
  if (!texts.length) {
    throw new Error(file ? "Upload a file in the queue first." : "Type comments first.");
  }
  const status = by("versions-status");
  const scores = [];
  for (const version of [a, b]) {
    // What serves is asked as everybody asks it.
    const served = String(version) === state.version;
    const found = await score(texts, {
      version: served ? null : version,
      progress: (done) => (status.textContent = `version ${version}: ${done} of ${texts.length} scored`),
    });
    if (served && found.version !== String(version)) {
      throw new Error("Another version serves since the page was opened; load it again.");
    }
    scores.push(found.probability);
  }
  showDifferences(texts, scores, a, b);
}

function showDifferences(texts, [first, second], a, b) {
  const pairs = texts
    .map((text, i) => ({ text, before: first[i], after: second[i] }))
    .filter((one) => one.before !== null && one.after !== null)
    .map((one) => ({ ...one, size: Math.abs(one.after - one.before) }))
    .sort((x, y) => y.size - x.size);
  const at = state.threshold;
  const flipped = pairs.filter((one) => one.before >= at !== one.after >= at).length;
  const mean = pairs.reduce((sum, one) => sum + one.size, 0) / Math.max(1, pairs.length);
  by("versions-status").textContent =
    `${pairs.length} compared: ${flipped} decisions flip at ${at.toFixed(2)}, ` +
    `the mean difference is ${mean.toFixed(4)}` +
    (pairs.length > MOST_ROWS ? `; the ${MOST_ROWS} largest are shown` : "");
  const rows = pairs
    .slice(0, MOST_ROWS)
    .map((one) => [short(one.text), ...changed(one.before, one.after)]);
  by("versions-results").replaceChildren(
    table("Largest differences first", ["Comment", `Version ${a}`, `Version ${b}`, "Change", "Decision"], rows),
  );
}

export function startVersions() {
  by("versions").addEventListener("submit", (event) => {
    event.preventDefault();
    told(by("versions-status"), event.target.querySelector("button"), compare);
  });
}
