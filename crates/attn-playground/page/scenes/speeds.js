// Scene 4: the pairs of a head, what they add up to, and their wavelengths against the trained context.

import { figure, html, perFrame, Plot, say, short, svg } from "../draw.js";

const byId = id => document.getElementById(id);
const PAIRS = 16, THETA = 10000, TRAINED = 256, GAPS = 512;

const PRESETS = {
  all: () => 1,
  fast: pair => pair < 5 ? 1 : 0,
  slow: pair => pair >= 11 ? 1 : 0,
  one: pair => pair === 5 ? 1 : 0,
  near: pair => pair < 9 ? 1 - pair / 10 : 0,
};

function face(angle, weight) {
  const x = Math.cos(angle) * 15, y = -Math.sin(angle) * 15;
  return svg("svg", { viewBox: "-20 -20 40 40", "aria-hidden": "true" },
    svg("circle", { r: 18, style: `fill: var(--page); stroke: var(--line); stroke-width: 2; opacity: ${0.4 + 0.6 * weight}` }),
    svg("line", { x2: x, y2: y, style: `stroke: var(--s3); stroke-width: 4; stroke-linecap: round; opacity: ${0.25 + 0.75 * weight}` }));
}

function waves({ pairs }, width) {
  const row = 24, left = 70, right = 12, top = 30, height = top + pairs.length * row + 24;
  const most = 5, room = width - left - right;
  const x = tokens => left + Math.min(1, Math.log10(tokens) / most) * room;
  const parts = [], labels = [];
  for (let power = 0; power <= most; power += width < 500 ? 2 : 1) {
    parts.push(svg("line", { class: "grid", x1: x(10 ** power), x2: x(10 ** power), y1: top - 4, y2: height - 20 }),
      svg("text", { class: "small", x: Math.min(x(10 ** power), width - 26), y: height - 4, "text-anchor": "middle" }, (10 ** power).toLocaleString("en")));
  }
  pairs.forEach(({ pair, wavelength, trained_turns }, i) => {
    const y = top + i * row, whole = trained_turns >= 1, seen = Math.min(1, trained_turns), a = seen * 2 * Math.PI;
    const slice = seen >= 0.999 ? svg("circle", { cx: left - 18, cy: y + 9, r: 9, style: "fill: var(--s3)" })
      : svg("path", { d: `M${left - 18} ${y + 9}h9A9 9 0 ${a > Math.PI ? 1 : 0} 0 ${left - 18 + 9 * Math.cos(a)} ${y + 9 - 9 * Math.sin(a)}Z`, style: "fill: var(--s1)" });
    parts.push(svg("text", { class: "small", x: left - 36, y: y + 13, "text-anchor": "end" }, String(pair + 1)),
      svg("circle", { cx: left - 18, cy: y + 9, r: 9, style: "fill: var(--panel); stroke: var(--line)" }), slice,
      svg("rect", { x: left, y: y + 2, width: Math.max(2, x(wavelength) - left), height: 14, rx: 3, style: `fill: var(--s${whole ? 3 : 1}); opacity: .85` }));
    const end = x(wavelength) + 5;
    labels.push(end < width - 60 ? svg("text", { class: "small", x: end, y: y + 13 }, short(wavelength))
      : svg("text", { x: x(wavelength) - 5, y: y + 13, "text-anchor": "end", style: "fill: var(--page); font-size: 12px" }, short(wavelength)));
  });
  parts.push(svg("line", { x1: x(TRAINED), x2: x(TRAINED), y1: top - 8, y2: height - 20, style: "stroke: var(--past); stroke-width: 2; stroke-dasharray: 5 4" }),
    svg("text", { class: "small", x: x(TRAINED), y: 14, "text-anchor": "middle", style: "fill: var(--past)" }, `trained: ${TRAINED} tokens`), ...labels);
  return svg("svg", { class: "art", viewBox: `0 0 ${width} ${height}`, height, role: "img",
    "aria-label": "Wavelength of each pair in tokens; a table of them follows" }, parts);
}

function waveTable({ pairs }) {
  return html("details", { class: "numbers" }, html("summary", {}, "The numbers"), html("div", { class: "scroll", tabindex: 0 }, html("table", { id: "speeds-table" },
    html("thead", {}, html("tr", {}, ["pair", "radians per token", "tokens per turn", "turns in training"].map(name => html("th", { scope: "col" }, name)))),
    html("tbody", {}, pairs.map(({ pair, inv_freq, wavelength, trained_turns }) => html("tr", {}, html("th", { scope: "row" }, String(pair + 1)),
      html("td", {}, figure("inv_freq", inv_freq)), html("td", {}, figure("wavelength", wavelength)), html("td", {}, figure("turns", trained_turns))))))));
}

export function begin({ ask }) {
  const mixer = byId("speeds-mixer"), gap = byId("speeds-gap");
  const faces = [], sliders = [];
  for (let pair = 0; pair < PAIRS; pair++) {
    const slider = html("input", { type: "range", min: 0, max: 100, value: 100, "aria-label": `How much pair ${pair + 1} counts, in percent` });
    const clock = html("span", { class: "face" });
    faces.push(clock);
    sliders.push(slider);
    mixer.append(html("label", {}, slider, clock, String(pair + 1)));
  }
  const plot = new Plot(byId("speeds-plot"), { label: "Fit of two equal words by words apart", height: 280 });
  const gaps = Array.from({ length: GAPS + 1 }, (_, i) => i);
  let drawn = 0;
  const draw = perFrame(() => {
    const weights = sliders.map(slider => +slider.value / 100);
    byId("speeds-gap-now").textContent = gap.value;
    try {
      const answer = ask({ ask: "speeds", weights, theta: THETA, trained: TRAINED, gap: +gap.value, gaps: GAPS });
      faces.forEach((place, pair) => say(place, face(answer.angles[pair], weights[pair])));
      say(byId("speeds-finding"), figure("gap", +gap.value, gap.value), " words apart the pairs add up to ", figure("score", answer.score), " of a perfect fit. ",
        figure("unfinished", answer.unfinished, String(answer.unfinished)), ` of ${PAIRS} pairs never make a full turn within the ${TRAINED} tokens of training.`);
      plot.set({
        x: { min: 0, max: GAPS, label: "words apart", unit: "words apart" }, y: { min: -1.05, max: 1.05 },
        series: [{ name: "the sum of the pairs", color: "var(--s3)", width: 2.5, x: gaps, y: answer.curve },
          { name: "decay, all pairs alike (Su et al. 2021)", color: "var(--s2)", dash: "8 4", x: gaps, y: answer.decay_share, faint: true }],
        marks: [{ x: +gap.value, label: short(answer.score), color: "var(--s1)" }, { x: TRAINED, label: "trained length", color: "var(--past)" }, { y: 0, label: "" }],
      });
      const place = byId("speeds-waves");
      if (drawn !== place.clientWidth) {
        drawn = place.clientWidth;
        say(place, waves(answer, drawn), waveTable(answer));
      }
    } catch (error) {
      say(byId("speeds-finding"), error.message);
    }
  });
  byId("speeds-form").addEventListener("input", draw);
  byId("speeds-form").addEventListener("click", ({ target }) => {
    const preset = PRESETS[target.dataset.preset];
    if (!preset) return;
    sliders.forEach((slider, pair) => { slider.value = Math.round(preset(pair) * 100); });
    draw();
  });
  byId("speeds-form").addEventListener("submit", event => event.preventDefault());
  new ResizeObserver(draw).observe(byId("speeds-waves"));
  draw();
}
