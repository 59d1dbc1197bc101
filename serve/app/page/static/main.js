// Starts the page: tabs, theme, threshold, what serves.

import { askForKey } from "./api.js";
import { startComments } from "./comments.js";
import { by } from "./dom.js";
import { startLabels } from "./labels.js";
import { showLive } from "./live.js";
import { startQueue } from "./queue.js";
import { learn, setThreshold, state } from "./state.js";
import { listVersions, startVersions } from "./versions.js";

// --- Tabs ------------------------------------------------------------------------------
const tabs = [...document.querySelectorAll("[role=tab]")];

function select(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    by(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  by("threshold-box").hidden = tab.id === "tab-live";
  showLive(tab.id === "tab-live");
}

const steps = { ArrowRight: 1, ArrowLeft: -1 };
for (const [place, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const ends = { Home: 0, End: tabs.length - 1 };
    const next = ends[event.key] ?? (place + steps[event.key] + tabs.length) % tabs.length;
    if (Number.isNaN(next)) return;
    event.preventDefault();
    select(tabs[next]);
    tabs[next].focus();
  });
}

// --- Theme -----------------------------------------------------------------------------
const THEMES = ["automatic", "light", "dark"];

function stored() {
  try {
    return localStorage.getItem("toxicity-theme");
  } catch {
    return null;
  }
}

function setTheme(theme) {
  if (theme === "automatic") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  by("theme").textContent = `Theme: ${theme}`;
  try {
    localStorage.setItem("toxicity-theme", theme);
  } catch {
    // the browser keeps nothing: then for this visit only
  }
}

let theme = THEMES.includes(stored()) ? stored() : "automatic";
setTheme(theme);
by("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  setTheme(theme);
});

// --- Start -----------------------------------------------------------------------------
by("threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value)));
by("key").addEventListener("click", async () => (await askForKey()) && start());

function showAbout() {
  const served = state.versions.find((one) => one.serves);
  const precision = served?.precision ? ` · ${served.precision}` : "";
  by("about").textContent = `version ${state.version} serves${precision}`;
  const stated = Object.entries(state.thresholds);
  by("stated").textContent = stated.length
    ? `The version states ${stated.map(([name, at]) => `${name} ${at}`).join(", ")}.`
    : "The version states no threshold: 0.5 is that of its training.";
  if (stated.length) setThreshold(stated[0][1]);
}

async function start() {
  try {
    await learn();
    by("problem").hidden = true;
    showAbout();
    listVersions();
  } catch (error) {
    by("about").textContent = "not connected";
    by("problem").textContent = error.message;
    by("problem").hidden = false;
  }
}

startComments();
startLabels();
startQueue();
startVersions();
await start();
document.documentElement.dataset.ready = "yes";
