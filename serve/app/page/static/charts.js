// Lines and bars as SVG; the last values stand beside them as text.

import { el, svg } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [360, 150, 40, 18, 8];
const x = (share) => LEFT + share * (WIDTH - LEFT - 6);
const y = (share) => HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP);

// The next of 1, 2, 5, 10, 20, ... from `value` on.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-3)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value) ?? 10 * power;
}

const words = (value) => (value === null || value === undefined ? "none" : Number(value.toPrecision(3)).toString());

function frame(label, top, ends) {
  const node = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const share of [0, 0.5, 1]) {
    node.append(
      svg("line", { class: "grid", x1: x(0), x2: x(1), y1: y(share), y2: y(share) }),
      svg("text", { class: "end", x: LEFT - 5, y: y(share) + 3 }, words(share * top)),
    );
  }
  node.append(
    svg("text", { x: x(0), y: HEIGHT - 5 }, ends[0]),
    svg("text", { class: "end", x: x(1), y: HEIGHT - 5 }, ends[1]),
  );
  return node;
}

// One line for each of `series`, a field of the points and its name.
export function chart(title, points, series, unit) {
  const fields = Object.keys(series);
  const values = points.flatMap((one) => fields.map((field) => one[field] ?? 0));
  const top = ceiling(Math.max(0, ...values));
  const last = points.at(-1) ?? {};
  const said = fields.map((field) => `${series[field]} ${words(last[field])}`).join(", ");
  const node = frame(`${title}, ${unit}: ${said}`, top, ["earlier", "now"]);
  const place = (i) => x(points.length > 1 ? i / (points.length - 1) : 1);
  for (const [number, field] of fields.entries()) {
    let path = "";
    points.forEach((one, i) => {
      if (one[field] === null || one[field] === undefined) return;
      path += `${path ? "L" : "M"}${place(i).toFixed(1)} ${y(one[field] / top).toFixed(1)}`;
    });
    node.append(svg("path", { class: `trace trace${number}`, d: path || "M0 0" }));
  }
  const legend = fields.map((field, i) =>
    el("li", {}, el("span", { class: `key key${i}` }), `${series[field]} ${words(last[field])} ${unit}`),
  );
  return el("div", {}, node, el("ul", { class: "legend" }, legend));
}

export function histogram(title, counts) {
  const top = ceiling(Math.max(1, ...counts));
  const total = counts.reduce((sum, one) => sum + one, 0);
  const high = counts.slice(counts.length / 2).reduce((sum, one) => sum + one, 0);
  const node = frame(`${title}: ${high} of ${total} at 0.5 or above`, top, ["0", "1"]);
  const width = (x(1) - x(0)) / counts.length;
  counts.forEach((count, i) => {
    if (!count) return;
    const height = y(0) - y(count / top);
    node.append(
      svg("rect", { class: "bin", x: x(0) + i * width + 0.5, y: y(0) - height, width: width - 1, height }),
    );
  });
  return node;
}

export function figure(title, note, drawn) {
  return el("figure", { class: "card" }, el("h2", {}, title), drawn, el("figcaption", { class: "muted" }, note));
}
