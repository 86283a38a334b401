// Scene 5: what every scaling and method does past the trained length, and what a small model makes of it.

import { figure, html, perFrame, Plot, say, short, svg } from "../draw.js";

const byId = id => document.getElementById(id);
const TRAINED = 256, THETA = 10000, HEAD = 32, MODEL = "tiny-austen";
/** The modes that are compared unless others are chosen. */
const FIRST = ["none", "linear", "yarn", "rerope", "streaming"];
/** Characters of the sample that are shown: more than the longest text takes. */
const SAMPLE = 12000;

/** A mode's colour and dashes, the same as in reports. */
function look(palette, name) {
  const i = Math.max(0, palette.order.indexOf(name));
  return { color: `var(--s${i % 8})`, dash: palette.dashes[Math.floor(i / 8) % palette.dashes.length] };
}

const settings = () => ({
  factor: +(2 ** (+byId("stretch-factor").value / 15)).toFixed(2),
  theta: Math.round(10 ** (+byId("stretch-theta").value / 10)),
  length: +byId("stretch-length").value * TRAINED,
});

function chooser(modes) {
  const group = (label, wanted) => html("optgroup", { label }, modes.filter(wanted).map(({ name }) => html("option", { value: name, selected: name === "yarn" }, name)));
  say(byId("stretch-mode"), group("leave everything as it is", mode => mode.name === "none"),
    group("slow the clocks down", mode => mode.name !== "none" && !mode.moves_positions),
    group("move the words", mode => mode.moves_positions));
}

function finding(answer, { length }, name) {
  const parts = [html("b", {}, name), `: ${answer.summary} `];
  if (answer.dropped > 0) parts.push("The last token does not see ", figure("dropped", answer.dropped, String(answer.dropped)), ` of the ${length} tokens at all. `);
  if (answer.unseen > 0) {
    parts.push("Its slowest pair shows ", figure("unseen", answer.unseen, String(answer.unseen)), ` of ${length} distances that did not occur in training.`);
  } else if (length > TRAINED) parts.push(answer.dropped ? "All distances that it sees occurred in training." : "For the slowest pair all distances look like those from training.");
  if (answer.scaling.attention_factor !== 1) parts.push(" Queries and keys are stretched by ", figure("attention_factor", answer.scaling.attention_factor), " to sharpen attention.");
  return parts;
}

function explore({ ask, palette }, modes) {
  const distances = new Plot(byId("stretch-distances"), { label: "Distance that is seen, by distance in the text", height: 280 });
  const pairs = new Plot(byId("stretch-pairs"), { label: "Tokens per turn of each pair", height: 280 });
  const draw = perFrame(() => {
    const { factor, theta, length } = settings(), mode = byId("stretch-mode").value;
    const takes = modes.find(({ name }) => name === mode)?.takes_factor;
    byId("stretch-factor").disabled = !takes;
    byId("stretch-factor-now").textContent = takes ? short(factor) : "this repair has none";
    byId("stretch-theta-now").textContent = `${theta.toLocaleString("en")}${theta === THETA ? ", as trained" : ""}`;
    byId("stretch-length-now").textContent = `${length}, ${length / TRAINED} times the trained length`;
    try {
      const answer = ask({ ask: "stretch", mode, factor, theta, trained_theta: THETA, head_dim: HEAD, trained: TRAINED, length });
      say(byId("stretch-finding"), finding(answer, { length }, mode));
      const x = answer.slowest.map((_, distance) => distance), apart = answer.slowest.some((value, i) => value !== answer.fastest[i]);
      const top = Math.max(length, TRAINED);
      distances.set({
        x: { min: 0, max: length, label: "distance in the text", unit: "tokens back" }, y: { min: 0, max: Math.max(top, answer.farthest) * 1.04 },
        series: [...(apart ? [{ name: "to the fastest pair", color: "var(--s2)", dash: "8 4", x, y: answer.fastest }] : []),
          { name: apart ? "to the slowest pair" : "to every pair", color: "var(--s1)", width: 2.5, x, y: answer.slowest }],
        marks: [{ y: TRAINED, label: "trained length", color: "var(--past)" }],
      });
      const numbers = answer.before.map(({ pair }) => pair + 1), waves = list => list.map(({ wavelength }) => wavelength);
      pairs.set({
        x: { min: 1, max: HEAD / 2, whole: true, label: "pair, fastest first", unit: "(pair)" },
        y: { min: 5, max: 10 ** Math.ceil(Math.log10(Math.max(...waves(answer.after), 1e5))), log: true },
        series: [{ name: "as trained", color: "var(--s0)", x: numbers, y: waves(answer.before) },
          { name: mode, color: look(palette, mode).color === "var(--s0)" ? "var(--s1)" : look(palette, mode).color, width: 2.5, dots: true, x: numbers, y: waves(answer.after) }],
        marks: [{ y: TRAINED, label: "trained length", color: "var(--past)" }],
      });
    } catch (error) {
      say(byId("stretch-finding"), error.message);
    }
    command();
  });
  byId("stretch-form").addEventListener("input", draw);
  byId("stretch-form").addEventListener("submit", event => event.preventDefault());
  draw();
}

const chosen = () => [...byId("score-modes").querySelectorAll("input:checked")].map(box => box.value);

function command() {
  const { factor, length } = settings();
  byId("score-command").textContent = `attn compare ${MODEL} --text text.txt --contexts ${length} --max-tokens ${length} --modes ${chosen().join(",") || "none"} --factor ${factor}`;
}

function boxes(modes, palette) {
  say(byId("score-modes"), modes.map(({ name, summary }) => {
    const { color, dash } = look(palette, name);
    return html("label", { title: summary }, html("input", { type: "checkbox", value: name, checked: FIRST.includes(name) }),
      svg("svg", { class: "line", width: 24, height: 10, "aria-hidden": "true" }, svg("line", { x1: 1, x2: 23, y1: 5, y2: 5, style: `stroke: ${color}; stroke-width: 2.5; stroke-dasharray: ${dash}` })), name);
  }));
}

function results(cells) {
  const place = byId("score-table");
  place.hidden = cells.length === 0;
  say(place, html("table", { id: "score-results" }, html("caption", {}, "Over the whole text, and over its last quarter"),
    html("thead", {}, html("tr", {}, ["repair", "loss", "perplexity", "last quarter"].map(name => html("th", { scope: "col" }, name)))),
    html("tbody", {}, cells.map(cell => html("tr", {}, html("th", { scope: "row" }, cell.mode), html("td", {}, figure("nll", cell.nll, cell.nll.toFixed(3))),
      html("td", {}, figure("perplexity", cell.perplexity, short(cell.perplexity, 4))),
      html("td", {}, figure("last_quarter_perplexity", cell.last_quarter_perplexity, short(cell.last_quarter_perplexity, 4))))))));
}

function score({ later, palette }) {
  const plot = new Plot(byId("score-plot"), { label: "Loss by position in the text", height: 320 });
  const state = byId("score-state");
  let running = null;
  const lines = new Map();
  const draw = (context, parts) => {
    const middle = part => Math.round((part + 0.5) * context / parts);
    const values = [...lines.values()].flat().filter(value => value !== null);
    plot.set({
      x: { min: 0, max: context, label: "tokens read", unit: "tokens read" },
      y: { min: Math.floor(Math.min(3, ...values)), max: Math.ceil(Math.max(5, ...values) + 0.2) },
      series: [...lines].map(([name, y]) => ({ name, ...look(palette, name), x: y.map((_, part) => middle(part)), y })),
      marks: [...(context > TRAINED ? [{ x: TRAINED, label: "trained length", color: "var(--past)" }] : [])],
    });
  };
  byId("score-form").addEventListener("input", command);
  byId("score-form").addEventListener("submit", async event => {
    event.preventDefault();
    running?.abort(new Error("another text was given"));
    const mine = running = new AbortController();
    const { factor, length } = settings(), text = byId("score-text").value, cells = [];
    lines.clear();
    results(cells);
    try {
      for (const mode of chosen()) {
        state.textContent = `reading with ${mode} …`;
        const curve = Array(32).fill(null);
        let known = length;
        lines.set(mode, curve);
        const show = perFrame(() => draw(known, curve.length));
        const { cell, tokens } = await later({ ask: "score", model: MODEL, mode, factor, text, context: length },
          { model: MODEL, signal: mine.signal, tell: ({ part, nll, of }) => { curve[part] = nll; known = of; show(); } });
        lines.set(mode, cell.curve);
        cells.push(cell);
        draw(tokens, cell.curve.length);
        results(cells);
        state.textContent = tokens < length ? `The text has only ${tokens} tokens: all of them were read.` : `${tokens} tokens read with each.`;
      }
      if (cells.length === 0) state.textContent = "Choose at least one repair.";
    } catch (error) {
      if (!mine.signal.aborted) state.textContent = error.message;
    }
  });
}

export function begin(scene) {
  const modes = scene.ask({ ask: "modes" });
  chooser(modes);
  boxes(modes, scene.palette);
  explore(scene, modes);
  score(scene);
  fetch(new URL("../sample.txt", import.meta.url)).then(async response => {
    const text = byId("score-text");
    if (response.ok && text.value === "") text.value = (await response.text()).slice(0, SAMPLE);
  });
}
