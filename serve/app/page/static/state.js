// What all parts of the page share: what serves, the threshold, and who wants to know of a change.

import { ask } from "./api.js";
import { by } from "./dom.js";

export const state = {
  version: null,
  thresholds: {}, // as the artifact states them, by name
  versions: [], // published, newest first
  threshold: 0.5,
};
const listeners = [];

export const onThreshold = (listener) => listeners.push(listener);

export function setThreshold(value) {
  state.threshold = value;
  by("threshold").value = String(value);
  by("threshold-value").textContent = value.toFixed(2);
  for (const listener of listeners) listener();
}

export async function learn() {
  const about = await ask("/ui/api/about");
  state.version = about.model_version;
  state.thresholds = about.thresholds;
  state.versions = about.versions;
}

// Name and value of each threshold to decide at: the artifact's, else 0.5; then the slider's.
export function decisions() {
  const stated = Object.entries(state.thresholds);
  const known = stated.length ? stated : [["default", 0.5]];
  const chosen = known.some(([, value]) => Math.abs(value - state.threshold) < 0.005);
  return chosen ? known : [...known, ["yours", state.threshold]];
}

export const comments = () =>
  by("text")
    .value.split(/\n[ \t]*\n+/)
    .map((text) => text.trim())
    .filter(Boolean);
