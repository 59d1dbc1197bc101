// Charts of what the server counts. They stand still while nobody sees them.

import { ask } from "./api.js";
import { chart, figure, histogram } from "./charts.js";
import { by } from "./dom.js";
import { showMonitor } from "./monitor.js";

const EVERY_MS = 2000;
const MOST = 60; // points of a line

let wanted = false;
let timer = null;
let before = null;
let points = [];

export function showLive(yes) {
  wanted = yes;
  turn();
}

function turn() {
  const on = wanted && !document.hidden;
  if (on && timer === null) {
    timer = setInterval(look, EVERY_MS);
    look();
  } else if (!on && timer !== null) {
    clearInterval(timer);
    timer = null;
    before = null; // the next difference would be over the pause
  }
}

document.addEventListener("visibilitychange", turn);

async function look() {
  showMonitor();
  let now;
  try {
    now = await ask("/ui/api/live");
  } catch (error) {
    by("live-status").textContent = error.message;
    return;
  }
  if (timer === null) return; // switched off meanwhile
  if (before && now.at_s > before.at_s) points = [...points, point(before, now)].slice(-MOST);
  before = now;
  show(now);
}

const sum = (counts) => Object.values(counts).reduce((total, one) => total + one, 0);

function point(a, b) {
  const seconds = b.at_s - a.at_s;
  const rate = (x, y) => Math.max(0, (y - x) / seconds); // a restart counts from 0 again
  const calls = b.totals.calls - a.totals.calls;
  return {
    requests: rate(sum(a.answers), sum(b.answers)),
    comments: rate(a.totals.comments, b.totals.comments),
    refused: rate(a.totals.refused, b.totals.refused),
    turned_away: rate(a.turned_away, b.turned_away),
    mean: calls > 0 ? (b.totals.call_us - a.totals.call_us) / calls / 1000 : null,
    p50: b.application.p50_ms,
    p99: b.application.p99_ms,
  };
}

function show(now) {
  const seconds = (EVERY_MS / 1000) * MOST;
  by("live-status").textContent =
    `${now.servers} of ${now.of_servers} servers answer; a new point every ${EVERY_MS / 1000} s, ` +
    `${seconds / 60} minutes of them.`;
  const lines = (title, unit, note, series) => figure(title, note, chart(title, points, series, unit));
  by("charts").replaceChildren(
    lines("Rate", "a second", "Requests at the door by haproxy's count, this page's own among them; comments by the servers', a few checks of health among them.", {
      requests: "requests",
      comments: "comments",
    }),
    lines("Refused", "a second", "By the servers: overload, and what cannot be scored. At the door: turned away by haproxy before a server sees it, while a server refuses.", {
      refused: "by the servers",
      turned_away: "turned away at the door",
    }),
    lines("Time", "ms", "p50 and p99: from arrival to answer in the application, over its last minute. Mean: in the servers, of all calls.", {
      p50: "p50",
      p99: "p99",
      mean: "mean in the servers",
    }),
    figure(
      "Scores",
      `The last minute of ${sum(now.application.scores)} comments that came by way of the application.`,
      histogram("Scores", now.application.scores),
    ),
  );
}
