// Typed comments: scores, and the scores of the same comments with another word.

import { score } from "./api.js";
import { card } from "./card.js";
import { by, el, short, shown, signed, table, told } from "./dom.js";
import { comments, state } from "./state.js";

const MOST_TYPED = 200;

async function scoreTyped() {
  const texts = comments();
  if (!texts.length) throw new Error("Type or paste a comment first.");
  if (texts.length > MOST_TYPED) {
    throw new Error(`These are ${texts.length} comments, at most ${MOST_TYPED} go here; the queue takes a file.`);
  }
  by("comments-status").textContent = "scoring…";
  const found = await score(texts);
  by("results").replaceChildren(
    ...texts.map((text, i) => card(text, found.probability[i], { number: i + 1, open: texts.length === 1 })),
  );
  const at = state.threshold;
  const toxic = found.probability.filter((value) => value !== null && value >= at).length;
  const many = texts.length === 1 ? "1 comment" : `${texts.length} comments`;
  by("comments-status").textContent = `${many} scored by version ${found.version}, ${toxic} toxic at ${at.toFixed(2)}`;
  by("what-if").hidden = false;
}

async function replaceTerm() {
  const [term, other] = [by("term").value.trim(), by("other").value.trim()];
  if (!term) throw new Error("Say which word to replace.");
  const pattern = new RegExp(
    `(?<![\\p{L}\\p{N}])${term.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&")}(?![\\p{L}\\p{N}])`,
    "giu",
  );
  const pairs = comments()
    .map((text) => [text, text.replace(pattern, () => other)])
    .filter(([before, after]) => before !== after);
  if (!pairs.length) throw new Error(`No comment has “${term}”.`);
  const { probability } = await score(pairs.flat());
  const rows = pairs.map(([, after], i) => [
    short(after),
    ...changed(probability[2 * i], probability[2 * i + 1]),
  ]);
  by("what-if-status").textContent = `${pairs.length} of ${comments().length} comments have “${term}”`;
  by("what-if-results").replaceChildren(
    table("Scores before and after", ["Comment with the other word", "Before", "After", "Change", "Decision"], rows),
  );
}

// Two scores, their difference, and what becomes of the decision.
export function changed(before, after) {
  if (before === null || after === null) return ["refused", "refused", "", ""];
  const [a, b] = [before >= state.threshold, after >= state.threshold];
  const word = (toxic) => (toxic ? "toxic" : "not toxic");
  const decision = a === b ? `stays ${word(a)}` : el("strong", {}, `now ${word(b)}`);
  return [shown(before), shown(after), signed(after - before), decision];
}

export function startComments() {
  by("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    told(by("comments-status"), event.target.querySelector("button"), scoreTyped);
  });
  by("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("ask").requestSubmit();
  });
  by("what-if").addEventListener("submit", (event) => {
    event.preventDefault();
    told(by("what-if-status"), event.target.querySelector("button"), replaceTerm);
  });
}
