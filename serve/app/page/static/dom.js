// Elements whose text is only ever text: nothing here reads markup.

export const by = (id) => document.getElementById(id);

// `attributes` whose names begin with "on" are listeners; false and null ones are left out.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

export function svg(tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  if (text !== null) node.textContent = text;
  return node;
}

export function table(caption, heads, rows) {
  const head = el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name)));
  const cells = (row) => row.map((cell, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, cell));
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", {}, caption),
      el("thead", {}, head),
      el("tbody", {}, rows.map((row) => el("tr", {}, cells(row)))),
    ),
  );
}

export const shown = (probability) => probability.toFixed(4);

export function signed(change) {
  const digits = Math.abs(change).toFixed(4);
  if (Number(digits) === 0) return "0.0000";
  return (change > 0 ? "+" : "−") + digits;
}

export const short = (text, most = 140) => (text.length > most ? `${text.slice(0, most)}…` : text);

// What is long scrolls inside its box, so it can have the focus.
export const scrollable = (many) => (many ? { tabindex: "0" } : {});

// Says what went wrong of what `action` does, and enables its button again.
export async function told(status, button, action) {
  button.disabled = true;
  try {
    await action();
  } catch (error) {
    status.textContent = error.message;
    status.classList.add("failed");
    return;
  } finally {
    button.disabled = false;
  }
  status.classList.remove("failed");
}
