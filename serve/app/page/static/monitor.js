// What a monitor of these servers found: drift, alarms, false positives of groups.

import { ask } from "./api.js";
import { chart, figure } from "./charts.js";
import { by, el } from "./dom.js";

const MOST_LINES = 3; // groups of a chart

export async function showMonitor() {
  let found;
  try {
    found = await ask("/ui/api/monitor");
  } catch (error) {
    by("monitor-status").textContent = error.message;
    return;
  }
  by("monitor-status").textContent = status(found);
  const lines = [...(found.alarms ?? []), ...(found.errors ?? []).map((words) => `error: ${words}`)];
  by("monitor-alarms").replaceChildren(...lines.map((words) => el("li", {}, words)));
  by("monitor-charts").replaceChildren(...(found.readings?.length ? charts(found) : []));
}

function status(found) {
  const last = found.time ? `the last reading was at ${new Date(found.time).toLocaleString()}` : "there was no reading yet";
  if (!found.running) return `No monitor runs: ${last}. "make monitor" starts one.`;
  const own = found.version ? ` Version ${found.version}${found.decides ? ` ${found.decides}` : ""}.` : "";
  return `A monitor runs, every ${found.every_s} s; ${last}: ${found.state}.${own}`;
}

function charts(found) {
  const of = found.readings.map((one) => ({ ...one, ...one.groups }));
  const named = Object.fromEntries(found.groups.slice(0, MOST_LINES).map((row) => [row.name, row.name]));
  const window = `the last ${found.window_s} s of comments, compared with the ${found.reference ?? "reference, which is missing"}`;
  const groups = found.groups.length
    ? figure(
        "False positives of groups",
        `Curated comments through the live server, decided from ${found.groups[0].threshold} on; the ${Object.keys(named).length} highest of up to ${found.groups.length} shown groups. ${found.groups.map(rate).join("; ")}.`,
        chart("False positives of groups", of, named, ""),
      )
    : figure("False positives of groups", "Nothing measured: the monitor has no --curated sets.", el("p", {}, "none"));
  return [
    figure("Drift", `Stability index, ${window}; nothing where comments are too few.`, chart("Drift", of, { score: "scores", length: "lengths" }, "")),
    figure("Unknown words", `Share of the words, ${window}.`, chart("Unknown words", of, { unknown: "now", unknown_reference: "in the reference" }, "%")),
    figure("Alarms", "Checks that are an alarm, at each reading.", chart("Alarms", of, { alarms: "alarms" }, "")),
    groups,
  ];
}

const digits = (value) => (value === null || value === undefined ? "none" : value.toFixed(3));
const rate = (row) => `${row.name} ${digits(row.value)} [${digits(row.low)}, ${digits(row.high)}] of ${row.of}, ${digits(row.reference)} in its reference`;
