// Drawing: elements, numbers as text, and line charts that answer to pointer and keyboard. Nothing is computed here but where
// on the screen a number goes.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with attributes and children; null attributes and children are left out. */
export function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element, in the same way. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}

/** A number with as many digits as are worth reading. */
export function short(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-4) {
    const [mantissa, exponent] = value.toExponential(1).split("e");
    return `${mantissa.replace(/\.0$/, "")}e${+exponent}`;
  }
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  const text = value.toPrecision(digits);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** A share as percent. */
export function percent(share) {
  const value = share * 100;
  if (value > 0 && value < 0.1) return "under 0.1 %";
  return `${value >= 99.95 || value >= 10 ? Math.round(value) : value.toFixed(1)} %`;
}

/** A figure in running text, with its full value and a name for tests to find it by. */
export function figure(name, value, text = short(value)) {
  return html("data", { value: String(value), "data-figure": name }, text);
}

/** Replaces the contents of an element by parts (texts and elements). */
export function say(element, ...parts) {
  element.replaceChildren(...parts.flat());
}

/** Runs `draw` at most once per frame, with the arguments of the last call. */
export function perFrame(draw) {
  let wanted = null;
  return (...args) => {
    if (wanted === null) requestAnimationFrame(() => { const last = wanted; wanted = null; draw(...last); });
    wanted = args;
  };
}

function ticks({ min, max, log, whole }, room) {
  if (log) {
    const all = [];
    for (let power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++) {
      for (const step of [1, 2, 5]) {
        const value = step * 10 ** power;
        if (value >= min * 0.999 && value <= max * 1.001) all.push(value);
      }
    }
    const tens = all.filter(value => Math.log10(value) % 1 === 0);
    const fit = all.length * 46 <= room ? all : tens;
    const skip = Math.max(1, Math.ceil(fit.length * 46 / room));
    return fit.filter((_, i) => i % skip === 0);
  }
  const rough = (max - min) / Math.max(2, room / 70), power = 10 ** Math.floor(Math.log10(rough));
  const steps = whole ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10];
  const step = Math.max(whole ? 1 : 0, steps.map(times => times * power).find(size => size >= rough));
  const all = [];
  for (let i = Math.ceil(min / step - 1e-9); i * step <= max + step * 1e-9; i++) all.push(i * step);
  return all;
}

/** Where a value lies between the ends of an axis, 0 to 1. */
function share(axis, value) {
  const at = axis.log ? Math.log : x => x;
  return (at(Math.max(value, axis.log ? axis.min / 1e3 : -Infinity)) - at(axis.min)) / (at(axis.max) - at(axis.min));
}

/**
 * A line chart in `host`. `set({ x, y, series, marks, cursor })` draws it anew:
 * x, y: { min, max, log, whole, label, unit }, whole for ticks at whole numbers only; series: [{ name, color, dash, x, y, width, faint }], null for a gap;
 * marks: [{ x | y, label, color }]; cursor: an x at which values are told at first.
 */
export class Plot {
  constructor(host, { label, height = 260 }) {
    this.host = host;
    this.height = height;
    this.at = null;
    this.drawing = svg("svg", { "aria-hidden": "true", focusable: "false" });
    this.tip = html("div", { class: "tip", hidden: true });
    this.live = html("p", { class: "hidden", "aria-live": "polite" });
    this.box = html("div", { class: "plot", tabindex: 0, role: "group", "aria-roledescription": "chart",
      "aria-label": `${label}. Left and right arrow keys read values.` }, this.drawing, this.tip);
    this.keys = html("ul", { class: "keys" });
    this.numbers = html("details", { class: "numbers", ontoggle: () => this.table() }, html("summary", {}, "The numbers"));
    host.replaceChildren(this.keys, this.box, this.live, this.numbers);
    this.label = label;
    this.box.addEventListener("pointermove", event => this.point(event));
    this.box.addEventListener("pointerdown", event => this.point(event));
    this.box.addEventListener("pointerleave", () => this.leave());
    this.box.addEventListener("keydown", event => this.key(event));
    this.box.addEventListener("blur", () => this.leave());
    this.again = perFrame(() => this.draw());
    new ResizeObserver(() => this.again()).observe(this.box);
    host.plot = this;
  }

  set(data) {
    this.data = data;
    const several = data.series.length > 1;
    say(this.keys, several ? data.series.map(line => html("li", {},
      svg("svg", { width: 26, height: 10, "aria-hidden": "true" },
        svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, style: stroke(line) })), line.name)) : []);
    this.again();
    if (this.numbers.open) this.table();
  }

  draw() {
    const width = this.box.clientWidth, height = this.height;
    if (!this.data || width === 0) return;
    const { x, y, series, marks = [] } = this.data;
    const left = y.hideTicks ? 12 : 48, right = 14, top = 12, bottom = x.label ? 42 : 26;
    this.place = {
      x: value => left + share(x, value) * (width - left - right),
      y: value => top + (1 - share(y, value)) * (height - top - bottom),
      left, right: width - right, top, bottom: height - bottom,
    };
    const { place } = this, parts = [];
    for (const value of ticks(x, width - left - right)) {
      parts.push(svg("line", { class: "grid", x1: place.x(value), x2: place.x(value), y1: top, y2: place.bottom }),
        svg("text", { class: "tick", x: place.x(value), y: place.bottom + 16, "text-anchor": "middle" }, short(value)));
    }
    for (const value of y.hideTicks ? [] : ticks(y, (height - top - bottom) * 1.4)) {
      parts.push(svg("line", { class: "grid", x1: left, x2: place.right, y1: place.y(value), y2: place.y(value) }),
        svg("text", { class: "tick", x: left - 6, y: place.y(value) + 4, "text-anchor": "end" }, short(value)));
    }
    if (x.label) parts.push(svg("text", { class: "axis", x: (left + place.right) / 2, y: height - 6, "text-anchor": "middle" }, x.label));
    // Labels of upright marks stand one below another, so that neighbours stay legible.
    let upright = 0;
    for (const mark of marks) parts.push(...this.mark(mark, mark.x === undefined || mark.x === null ? 0 : upright++));
    const clip = `clip${Plot.count = (Plot.count ?? 0) + 1}`;
    parts.push(svg("clipPath", { id: clip }, svg("rect", { x: left, y: top - 3, width: place.right - left, height: place.bottom - top + 6 })));
    const lines = series.map(line => svg("path", { d: this.path(line), style: stroke(line), class: line.faint ? "faint" : null }));
    const dots = series.filter(line => line.dots).flatMap(line => line.x.map((at, i) => line.y[i] === null || line.y[i] === undefined ? null
      : svg("circle", { cx: place.x(at), cy: place.y(line.y[i]), r: 2.5, style: `fill: ${line.color}` })));
    parts.push(svg("g", { "clip-path": `url(#${clip})` }, lines, dots));
    this.pointer = svg("g", {});
    parts.push(this.pointer);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.drawing.setAttribute("height", height);
    this.drawing.replaceChildren(...parts);
    if (y.label) this.box.dataset.y = y.label;
    this.show(this.at, false);
  }

  path({ x, y }) {
    let open = false;
    return x.map((at, i) => {
      const value = y[i];
      if (value === null || value === undefined || !Number.isFinite(value)) { open = false; return ""; }
      const step = `${open ? "L" : "M"}${this.place.x(at).toFixed(1)} ${this.place.y(value).toFixed(1)}`;
      open = true;
      return step;
    }).join("");
  }

  mark({ x, y, label, color = "var(--soft)" }, row) {
    const { place } = this, style = `stroke: ${color}`;
    if (x !== undefined && x !== null) {
      const at = place.x(x), after = at < (place.left + place.right) / 2;
      return [svg("line", { class: "mark", x1: at, x2: at, y1: place.top, y2: place.bottom, style }),
        svg("text", { class: "note", x: at + (after ? 5 : -5), y: place.top + 11 + 14 * row, "text-anchor": after ? "start" : "end" }, label ?? "")];
    }
    return [svg("line", { class: "mark", x1: place.left, x2: place.right, y1: place.y(y), y2: place.y(y), style }),
      svg("text", { class: "note", x: place.right - 4, y: place.y(y) - 5, "text-anchor": "end" }, label ?? "")];
  }

  /** All x values, in order. */
  positions() {
    return [...new Set(this.data.series.flatMap(line => line.x))].sort((a, b) => a - b);
  }

  point(event) {
    if (!this.place) return;
    const from = this.box.getBoundingClientRect().left, px = event.clientX - from;
    let best = null, distance = Infinity;
    for (const at of this.positions()) {
      const away = Math.abs(this.place.x(at) - px);
      if (away < distance) [best, distance] = [at, away];
    }
    this.show(best, false);
  }

  key(event) {
    const all = this.positions(), now = Math.max(0, all.indexOf(this.at));
    const big = Math.max(1, Math.round(all.length / 10));
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, PageUp: now + big, PageDown: now - big, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape") return this.leave();
    if (to === undefined) return;
    event.preventDefault();
    this.show(all[this.at === null ? 0 : Math.min(all.length - 1, Math.max(0, to))], true);
  }

  leave() {
    this.at = null;
    this.tip.hidden = true;
    this.pointer?.replaceChildren();
  }

  /** Tells the values at an x, aloud if `spoken`. */
  show(at, spoken) {
    this.at = at;
    if (at === null || at === undefined || !this.place) return this.leave();
    const { x, series } = this.data;
    const rows = series.map(line => {
      const i = line.x.indexOf(at);
      return i < 0 ? null : { line, value: line.y[i] };
    }).filter(Boolean);
    const unit = at === 1 ? x.unit?.replace(/^(word|token)s/, "$1") : x.unit;
    const head = `${short(at, 4)} ${unit ?? ""}`;
    say(this.tip, html("strong", {}, head), rows.map(({ line, value }) => html("div", {},
      html("span", { class: "dot", style: `background: ${line.color}` }), `${line.name} `, html("b", {}, short(value)))));
    this.tip.hidden = false;
    const left = this.place.x(at), width = this.tip.offsetWidth, room = this.box.clientWidth;
    this.tip.style.left = `${Math.min(Math.max(0, left + 12 + width > room ? left - width - 12 : left + 12), Math.max(0, room - width))}px`;
    this.pointer.replaceChildren(svg("line", { class: "cursor", x1: left, x2: left, y1: this.place.top, y2: this.place.bottom }),
      ...rows.filter(({ value }) => value !== null && value !== undefined).map(({ line, value }) =>
        svg("circle", { cx: left, cy: this.place.y(value), r: 4, style: `fill: ${line.color}` })));
    if (spoken) this.live.textContent = `${head}: ${rows.map(({ line, value }) => `${line.name} ${short(value)}`).join(", ")}`;
  }

  /** The same as a table, made when it is opened. */
  table() {
    if (!this.numbers.open || !this.data) return;
    const { x, series } = this.data;
    const all = this.positions(), step = Math.max(1, Math.ceil(all.length / 40));
    const rows = all.filter((_, i) => i % step === 0 || i === all.length - 1);
    const table = html("table", {}, html("caption", {}, this.label),
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, x.label ?? x.unit), series.map(line => html("th", { scope: "col" }, line.name)))),
      html("tbody", {}, rows.map(at => html("tr", {}, html("th", { scope: "row" }, short(at, 4)),
        series.map(line => { const i = line.x.indexOf(at); return html("td", {}, i < 0 ? "–" : short(line.y[i], 4)); })))));
    this.numbers.querySelector(".scroll")?.remove();
    this.numbers.append(html("div", { class: "scroll", tabindex: 0 }, table));
  }
}

function stroke({ color, dash = "none", width = 2 }) {
  return `stroke: ${color}; stroke-width: ${width}; stroke-dasharray: ${dash}`;
}
