// A scored comment: bar, decisions, which words moved it, how it was read.

import { ask, mostVariants, scoreTogether } from "./api.js";
import { el, scrollable, shown, signed, table } from "./dom.js";
import { labelButtons } from "./labels.js";
import { decisions, onThreshold, state } from "./state.js";

const MOST_WORDS = 60; // left out one by one
const STATES = { respelled: "read as", unknown: "not in the vocabulary", cut: "behind the cut" };

// --- The score -------------------------------------------------------------------------
export function scoreView(probability) {
  const node = el("div", { class: "score", "data-probability": probability ?? "" });
  showScore(node);
  return node;
}

function showScore(node) {
  if (node.dataset.probability === "") {
    node.replaceChildren(el("p", { class: "error" }, "The server refused this comment; it may be too long."));
    return;
  }
  const probability = Number(node.dataset.probability);
  const fill = el("span", { class: "fill" });
  fill.style.width = `${100 * probability}%`;
  const ticks = decisions().map(([, at]) => {
    const tick = el("span", { class: "tick" });
    tick.style.left = `${100 * at}%`;
    return tick;
  });
  const bar = {
    role: "meter",
    class: probability >= state.threshold ? "bar high" : "bar",
    "aria-label": "Score",
    "aria-valuemin": 0,
    "aria-valuemax": 1,
    "aria-valuenow": probability,
    "aria-valuetext": shown(probability),
  };
  node.replaceChildren(
    el("div", { class: "line" }, el("strong", { class: "number" }, shown(probability)), el("div", bar, fill, ticks)),
    el(
      "ul",
      { class: "decisions", "aria-label": "Decisions" },
      decisions().map(([name, at]) => {
        const toxic = probability >= at;
        return el("li", { class: toxic ? "yes" : "no" }, `${toxic ? "toxic" : "not toxic"} at ${at.toFixed(2)} (${name})`);
      }),
    ),
  );
}

onThreshold(() => {
  for (const node of document.querySelectorAll(".score")) showScore(node);
});

// --- The card --------------------------------------------------------------------------
export function card(text, probability, { number, open = false }) {
  const comment = el("p", { class: "comment", ...scrollable(text.length > 600) }, text);
  const parts = [
    el("h2", {}, `Comment ${number}`),
    comment,
    scoreView(probability),
    labelButtons(text),
  ];
  if (probability !== null) {
    parts.push(
      onDemand("Which words moved it", open, () => moved(text, comment)),
      onDemand("How it was read", open, () => read(text)),
    );
  }
  return el("article", { class: "card" }, parts);
}

// A part that asks the server once it is opened.
function onDemand(title, open, find) {
  const content = el("div", {}, "asking…");
  const node = el("details", { open }, el("summary", {}, title), content);
  const fill = async () => {
    try {
      content.replaceChildren(...(await find()));
    } catch (error) {
      content.replaceChildren(el("p", { class: "error" }, error.message));
    }
  };
  if (open) fill();
  else node.addEventListener("toggle", fill, { once: true });
  return node;
}

// --- Which words moved it --------------------------------------------------------------
async function moved(text, comment) {
  const words = [...text.matchAll(/\S+/gu)];
  const most = Math.max(1, Math.min(MOST_WORDS, mostVariants(text) - 1));
  const tried = words.slice(0, most);
  const without = tried.map((word) => text.slice(0, word.index) + text.slice(word.index + word[0].length));
  const { probability } = await scoreTogether([text, ...without]);
  const [whole, ...others] = probability;
  const found = tried.map((word, i) => ({ word, without: others[i], change: whole - others[i] }));
  colour(text, found, comment);
  const rows = [...found]
    .sort((a, b) => Math.abs(b.change) - Math.abs(a.change))
    .map((one) => [one.word[0], shown(one.without), signed(one.change)]);
  const rest = words.length - tried.length;
  return [
    el("p", { class: "muted" }, "Each word was left out once. The change is what the word adds to the score."),
    rest > 0 ? el("p", {}, `The first ${tried.length} words of ${words.length} were tried.`) : null,
    table("Score without each word", ["Word", "Score without it", "What it adds"], rows),
  ].filter(Boolean);
}

// The words of the comment, coloured by what each adds; the table has the numbers.
function colour(text, found, comment) {
  const largest = Math.max(0.02, ...found.map((one) => Math.abs(one.change)));
  const parts = [];
  let at = 0;
  for (const { word, change } of found) {
    parts.push(text.slice(at, word.index));
    const strength = Math.round((4 * Math.abs(change)) / largest);
    const kind = strength ? `${change > 0 ? "up" : "down"} by${strength}` : "same";
    parts.push(el("span", { class: `word ${kind}` }, word[0]));
    at = word.index + word[0].length;
  }
  comment.replaceChildren(...parts, text.slice(at));
}

// --- How it was read -------------------------------------------------------------------
async function read(text) {
  const found = await ask("/ui/api/read", { text });
  const pieces = found.pieces.map(([written, state, words]) => {
    const said = state === "respelled" ? `${STATES.respelled} “${words}”` : STATES[state];
    return el("li", { class: `piece ${state}` }, written, said ? el("small", {}, ` ${said}`) : null);
  });
  const notes = [`${found.tokens} tokens of at most ${found.most}.`];
  if (found.cut) notes.push("The rest is behind the cut: it does not count.");
  if (!found.shown_whole) notes.push("Only the start of the comment is shown here.");
  return [el("p", { class: "muted" }, notes.join(" ")), el("ul", { class: "pieces", ...scrollable(pieces.length > 60) }, pieces)];
}
