// Scene 3: a query and a key turned by their positions.

import { figure, perFrame, Plot, say, short, svg } from "../draw.js";

const byId = id => document.getElementById(id);
const GAPS = 40;

/** Speeds from a hundredth of a radian to pi per word. */
const speedOf = step => 0.01 * Math.PI ** (step / 100) * 100 ** (step / 100);

function hand([x, y], color, name) {
  const reach = 92, [hx, hy] = [x * reach, -y * reach], away = 1.16;
  // The head of the arrow: two short lines back from the tip.
  const barb = turn => {
    const angle = Math.atan2(hy, hx) + turn;
    return `M${hx} ${hy}L${hx - 13 * Math.cos(angle)} ${hy - 13 * Math.sin(angle)}`;
  };
  return svg("g", { style: `stroke: ${color}; fill: none; stroke-width: 5; stroke-linecap: round` },
    svg("line", { x1: 0, y1: 0, x2: hx, y2: hy }), svg("path", { d: barb(0.45) + barb(-0.45), "stroke-width": 4 }),
    svg("text", { x: hx * away, y: hy * away + 5, "text-anchor": Math.abs(x) < 0.35 ? "middle" : x > 0 ? "start" : "end",
      style: `fill: ${color}; stroke: none; font-weight: 600` }, name));
}

function clock(answer) {
  const [query, key] = answer.angles;
  const between = query - key, turn = Math.PI * 2, shown = between % turn;
  const tip = (angle, r) => [Math.cos(angle) * r, -Math.sin(angle) * r];
  const [ax, ay] = tip(key, 34), [bx, by] = tip(key + shown, 34);
  const arc = Math.abs(shown) < 1e-6 ? null : svg("path", {
    d: `M${ax} ${ay}A34 34 0 ${Math.abs(shown) > Math.PI ? 1 : 0} ${shown > 0 ? 0 : 1} ${bx} ${by}`,
    style: "fill: none; stroke: var(--s3); stroke-width: 6; opacity: .8",
  });
  const marks = Array.from({ length: 12 }, (_, i) => {
    const [x, y] = tip(i * Math.PI / 6, 1);
    return svg("line", { x1: x * 94, y1: y * 94, x2: x * 100, y2: y * 100, class: "grid", style: "stroke: var(--line); stroke-width: 2" });
  });
  return svg("svg", { class: "art", viewBox: "-150 -125 300 250", role: "img",
    "aria-label": `Arrows of query and key, ${short(between)} radians apart; their product is ${short(answer.dot)}` },
  svg("circle", { r: 100, style: "fill: var(--panel); stroke: var(--line); stroke-width: 2" }), marks, arc,
  hand(answer.key, "var(--s2)", "key"), hand(answer.query, "var(--s1)", "query"), svg("circle", { r: 5, style: "fill: var(--text)" }));
}

function text(shift, gap, width) {
  const words = GAPS + 61, size = (width - 8) / words, y = 26;
  const x = at => 4 + at * size;
  const boxes = Array.from({ length: words }, (_, i) => svg("rect", { x: x(i) + 0.5, y, width: Math.max(1, size - 1), height: 16, rx: 2, style: "fill: var(--grid)" }));
  const word = (at, color, name, end) => [svg("rect", { x: x(at) - 1, y: y - 3, width: size + 2, height: 22, rx: 3, style: `fill: ${color}` }),
    svg("text", { x: Math.min(Math.max(x(at) + size / 2, 40), width - 40), y: end, "text-anchor": "middle", style: `fill: ${color}; font-weight: 600` }, `${name} ${at}`)];
  return svg("svg", { class: "art", viewBox: `0 0 ${width} 66`, height: 66, "aria-hidden": "true" }, boxes,
    svg("line", { x1: x(shift) + size, x2: x(shift + gap), y1: y + 8, y2: y + 8, style: "stroke: var(--s3); stroke-width: 3" }),
    word(shift, "var(--s2)", "key at", 16), word(shift + gap, "var(--s1)", "query at", 60));
}

export function begin({ ask }) {
  const gap = byId("rotation-gap"), shift = byId("rotation-shift"), speed = byId("rotation-speed");
  const plot = new Plot(byId("rotation-plot"), { label: "Product of query and key by words apart", height: 240 });
  const gaps = Array.from({ length: GAPS + 1 }, (_, i) => i);
  let before = null;
  const draw = perFrame(() => {
    const apart = +gap.value, from = +shift.value, turn = speedOf(+speed.value);
    byId("rotation-gap-now").textContent = apart;
    byId("rotation-shift-now").textContent = `by ${from}`;
    byId("rotation-speed-now").textContent = `${short(turn)} radians a word`;
    const answer = ask({ ask: "rotation", speed: turn, query: from + apart, key: from, apart: 0, gaps: GAPS });
    const moved = before && before.apart === apart && before.turn === turn && before.from !== from;
    before = { apart, turn, from };
    say(byId("rotation-finding"), `Query at ${from + apart}, key at ${from}: the product is `, figure("dot", answer.dot), ". ",
      moved ? "Both moved, and nothing changed: only the distance counts."
        : apart === 0 ? "The arrows have the same direction: a perfect fit."
          : answer.dot > 0.7 ? "Still close together: a good fit." : answer.dot < -0.7 ? "They point in opposite directions: for this pair the words now fit worse than unrelated words."
            : "The arrows are turned apart, so the two fit less.");
    say(byId("rotation-clock"), clock(answer));
    say(byId("rotation-text"), text(from, apart, byId("rotation-text").clientWidth));
    plot.set({
      x: { min: 0, max: GAPS, label: "words apart", unit: "words apart" }, y: { min: -1.1, max: 1.1 },
      series: [{ name: "product", color: "var(--s3)", x: gaps, y: answer.curve, dots: true }],
      marks: [{ x: apart, label: short(answer.dot), color: "var(--s1)" }, { y: 0, label: "" }],
    });
  });
  byId("rotation-form").addEventListener("input", draw);
  new ResizeObserver(draw).observe(byId("rotation-text"));
  draw();
}
