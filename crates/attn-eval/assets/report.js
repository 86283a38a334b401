// Draws the charts of a report and lets its tables be sorted. The page is complete without it: every figure is in a table.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();
  // A name has one colour on all pages.
  const order = data.order;
  const drawn = [];

  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = i => css(`--s${i % 8}`);
  const DASHES = [[], [8, 4], [2, 3], [10, 4, 2, 4]];
  const dash = i => DASHES[Math.floor(i / 8) % DASHES.length].concat();
  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  // About four digits; whole numbers without decimals.
  function shown(v) {
    if (v === null || v === undefined) return "–";
    const a = Math.abs(v);
    if (a !== 0 && (a >= 1e6 || a < 1e-3)) return v.toExponential(2);
    if (Number.isInteger(v)) return String(v);
    return v.toFixed(a >= 1000 ? 0 : a >= 100 ? 1 : a >= 1 ? 2 : 4);
  }

  // Positions of labels on an axis: round numbers, for a logarithmic axis powers of ten and, where those are few, 2 and 5.
  function ticks(low, high, log, most) {
    if (log) {
      const sets = [[1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8], [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1]];
      const all = sets.map(steps => {
        const found = [];
        for (let d = Math.floor(low); d <= Math.ceil(high); d++)
          for (const s of steps) {
            const v = Math.log10(s) + d;
            if (v >= low - 1e-9 && v <= high + 1e-9) found.push(v);
          }
        return found;
      });
      const fits = all.find(found => found.length <= most);
      return fits || all[3].filter((_, i, list) => i % Math.ceil(list.length / most) === 0);
    }
    const span = high - low || 1;
    const raw = span / Math.max(most, 1);
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(s => s * unit).find(s => s >= raw);
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(+v.toPrecision(12));
    return found;
  }

  // Ticks of an axis that is linear near zero and logarithmic beyond: half a percent, one, two, five and so on, on both sides.
  function spreadTicks(low, high, linear, most) {
    for (const steps of [[1, 2, 5], [1]]) {
      const found = [0];
      for (let d = Math.floor(Math.log10(linear)); d < 300; d++)
        for (const v of steps.map(s => +(s * 10 ** d).toPrecision(3))) if (v >= linear) found.push(v, -v);
      const fits = found.map(v => Math.asinh(v / linear)).filter(v => v >= low && v <= high).sort((a, b) => a - b);
      if (fits.length <= most || steps.length === 1) return fits.filter((_, i, list) => i % Math.ceil(list.length / most) === 0);
    }
  }

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.spec = data.charts.find(chart => chart.id === figure.dataset.chart);
      this.view = 0;
      this.keys = figure.querySelector(".keys");
      this.box = figure.querySelector(".chart");
      this.live = figure.querySelector("[aria-live]");
      const select = figure.querySelector("select");
      if (select) select.addEventListener("change", () => { this.view = select.selectedIndex; this.build(); });
      this.box.addEventListener("keydown", event => this.key(event));
      this.box.addEventListener("blur", () => this.leave());
      this.makeKeys();
      this.build();
      new ResizeObserver(() => this.resize()).observe(this.box);
    }

    names() {
      return [...new Set(this.spec.views.flatMap(view => view.series.map(series => series.name)))];
    }

    // One checkbox per line; a name is shown or hidden in all charts of the page at once.
    makeKeys() {
      for (const name of this.names()) {
        const i = order.indexOf(name);
        const box = element("input", { type: "checkbox" });
        box.checked = !hidden.has(name);
        box.dataset.name = name;
        box.addEventListener("change", () => {
          if (box.checked) hidden.delete(name); else hidden.add(name);
          for (const chart of drawn) chart.toggled();
        });
        const ns = "http://www.w3.org/2000/svg";
        const svg = document.createElementNS(ns, "svg");
        const line = document.createElementNS(ns, "line");
        for (const [k, v] of Object.entries({ width: 28, height: 12, "aria-hidden": "true" })) svg.setAttribute(k, v);
        const stroke = { x1: 0, x2: 28, y1: 6, y2: 6, "stroke-width": 3, "stroke-dasharray": dash(i).join(" ") || "none" };
        for (const [k, v] of Object.entries(stroke)) line.setAttribute(k, v);
        line.style.stroke = `var(--s${i % 8})`;
        svg.append(line);
        this.keys.append(element("label", {}, box, svg, name));
      }
    }

    toggled() {
      for (const box of this.keys.querySelectorAll("input")) box.checked = !hidden.has(box.dataset.name);
      this.build();
    }

    build() {
      if (this.plot) this.plot.destroy();
      this.leave();
      const { spec } = this;
      const view = spec.views[this.view];
      const fx = spec.xlog ? v => Math.log10(Math.max(v, spec.xfloor || 1e-12)) : v => v;
      const y = v => (spec.ylinear ? Math.asinh(v / spec.ylinear) : spec.ylog ? Math.log10(v) : v);
      const fy = v => (v === null || v === undefined || (spec.ylog && v <= 0) ? null : y(v));
      this.xs = view.x.map(fx);
      this.lines = view.series.map(series => ({
        ...series, index: order.indexOf(series.name), show: !hidden.has(series.name), ys: series.values.map(fy),
        lows: (series.low || []).map(fy), highs: (series.high || []).map(fy),
      }));
      const visible = this.lines.filter(line => line.show);
      const ends = visible.flatMap(line => [...line.ys, ...line.lows, ...line.highs]).filter(v => v !== null && v !== undefined);
      let low = Math.min(...ends), high = Math.max(...ends);
      if (!ends.length) [low, high] = [0, 1];
      const margin = (high - low) * 0.06 || Math.abs(high) * 0.02 || 0.02;
      const yRange = [spec.yzero ? Math.min(0, low) : low - margin, high + margin];
      const xSpan = this.xs[this.xs.length - 1] - this.xs[0];
      // Room for lines that are shifted from their first and last x values.
      const beside = spec.xticks ? Math.min(3 * visible.length / Math.max(this.box.clientWidth - 80, 100), 0.3 / Math.max(this.xs.length - 1, 1)) : 0;
      const pad = xSpan * (0.03 + beside) || 0.1;
      const xRange = [this.xs[0] - pad, this.xs[this.xs.length - 1] + pad];
      const width = Math.max(this.box.clientWidth, 200);
      const back = v => (spec.xlog ? 10 ** v : v);
      const text = css("--text"), grid = css("--grid");
      const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
      const plain = v => shown(+v.toPrecision(4));
      const height = width < 480 ? 280 : 340;
      const unit = v => (spec.ylinear ? `${v > 0 ? "+" : ""}${+v.toPrecision(3)}${spec.yunit}` : plain(v));
      const yShown = v => unit(spec.ylinear ? spec.ylinear * Math.sinh(v) : spec.ylog ? 10 ** v : v);
      const yTicks = () => spec.ylinear ? spreadTicks(...yRange, spec.ylinear, height / 24) : ticks(...yRange, spec.ylog, 7);
      // Values that are ticks themselves are written in full: 12288, not 12290.
      const told = v => (spec.xticks ? shown(+v.toPrecision(9)) : plain(v));
      const x = v => (spec.xfloor && back(v) < 0.99 ? (v <= this.xs[0] + 1e-9 ? "0" : "") : told(back(v)));
      const xTicks = () => spec.xticks ? this.xs.concat() : ticks(this.xs[0], this.xs[this.xs.length - 1], spec.xlog, width / 75);
      this.plot = new uPlot({
        width, height, legend: { show: false }, padding: [12, 12, 0, 0],
        cursor: { y: false, drag: { x: false, y: false }, points: { show: !spec.xticks, size: 8 } },
        scales: { x: { time: false, range: () => xRange }, y: { range: () => yRange } },
        axes: [
          { ...axis, label: spec.xlabel, labelSize: 26, size: 34, splits: xTicks, values: (_, v) => v.map(x) },
          { ...axis, label: spec.ylabel, labelSize: 26, size: spec.ylinear ? 66 : 56, splits: yTicks, values: (_, v) => v.map(yShown) },
        ],
        series: [{}, ...this.lines.map(line => ({
          label: line.name, show: line.show, stroke: color(line.index), width: 2, dash: dash(line.index), spanGaps: false,
          points: { show: !spec.xticks && this.xs.length <= 40, size: 6, fill: color(line.index) },
          ...(spec.xticks ? { paths: (u, s) => this.path(u, line, u.data[s]) } : {}),
        }))],
        hooks: {
          draw: [u => { this.whiskers(u); this.marks(u, view, fx); }],
          setCursor: [u => this.hover(u.cursor.idx)],
        },
      }, [this.xs, ...this.lines.map(line => line.ys)], this.box);
      this.width = width;
    }

    // Pixels by which a line is shifted from its x values, so that points and intervals of several lines don't overlap.
    shift(u, line) {
      const beside = this.lines.filter(other => other.show);
      const places = this.xs.map(x => u.valToPos(x, "x", true));
      const gap = Math.min(...places.slice(1).map((x, i) => x - places[i]), 1e9);
      const step = Math.min(6 * devicePixelRatio, gap * 0.6 / beside.length);
      return this.spec.xticks ? (beside.indexOf(line) - (beside.length - 1) / 2) * step : 0;
    }

    path(u, line, ys) {
      const stroke = new Path2D(), shift = this.shift(u, line);
      ys.forEach((y, i) => {
        if (y === null || y === undefined) return;
        const go = i && ys[i - 1] !== null && ys[i - 1] !== undefined ? "lineTo" : "moveTo";
        stroke[go](u.valToPos(this.xs[i], "x", true) + shift, u.valToPos(y, "y", true));
      });
      return { stroke, fill: null, clip: null, band: null, gaps: [], flags: 1 };
    }

    // Intervals, where there are some, and the points of lines that are shifted.
    whiskers(u) {
      const { ctx } = u;
      ctx.save();
      for (const line of this.lines.filter(line => line.show && (line.lows.length || this.spec.xticks))) {
        const shift = this.shift(u, line);
        ctx.setLineDash([]);
        ctx.strokeStyle = ctx.fillStyle = color(line.index);
        line.ys.forEach((y, i) => {
          if (!this.spec.xticks || y === null || y === undefined) return;
          ctx.beginPath();
          ctx.arc(u.valToPos(this.xs[i], "x", true) + shift, u.valToPos(y, "y", true), 3.5 * devicePixelRatio, 0, 2 * Math.PI);
          ctx.fill();
        });
        ctx.lineWidth = 1.5 * devicePixelRatio;
        line.lows.forEach((low, i) => {
          if (low === null || line.highs[i] === null) return;
          const x = u.valToPos(this.xs[i], "x", true) + shift, cap = 2.5 * devicePixelRatio;
          const [a, b] = [low, line.highs[i]].map(v => u.valToPos(v, "y", true));
          ctx.beginPath();
          ctx.moveTo(x, a); ctx.lineTo(x, b);
          ctx.moveTo(x - cap, a); ctx.lineTo(x + cap, a);
          ctx.moveTo(x - cap, b); ctx.lineTo(x + cap, b);
          ctx.stroke();
        });
      }
      ctx.restore();
    }

    // Vertical lines with a label, such as the trained context.
    marks(u, view, fx) {
      const { ctx } = u;
      const { left, top, width, height } = u.bbox;
      ctx.save();
      for (const mark of view.marks || []) {
        const x = u.valToPos(fx(mark.x), "x", true);
        if (x < left - 1 || x > left + width + 1) continue;
        ctx.strokeStyle = ctx.fillStyle = css("--soft");
        ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
        ctx.lineWidth = devicePixelRatio;
        ctx.beginPath(); ctx.moveTo(x, top); ctx.lineTo(x, top + height); ctx.stroke();
        ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
        const right = x + ctx.measureText(mark.label).width + 8 * devicePixelRatio > left + width;
        ctx.textAlign = right ? "right" : "left";
        ctx.fillText(mark.label, x + (right ? -5 : 5) * devicePixelRatio, top + 14 * devicePixelRatio);
      }
      ctx.restore();
    }

    resize() {
      if (this.plot && Math.abs(this.box.clientWidth - this.width) > 1) this.build();
    }

    hover(index) {
      if (index === null || index === undefined) return this.leave();
      this.at = index;
      const view = this.spec.views[this.view];
      const rows = this.lines.filter(line => line.show && line.values[index] !== null && line.values[index] !== undefined);
      rows.sort((a, b) => b.values[index] - a.values[index]);
      if (!this.tip) this.box.append(this.tip = element("div", { class: "tip", "aria-hidden": "true" }));
      const body = element("tbody");
      for (const line of rows) {
        const swatch = element("td", {}, "■");
        swatch.style.color = color(line.index);
        const range = line.low && line.low[index] !== null ? ` (${shown(line.low[index])} to ${shown(line.high[index])})` : "";
        body.append(element("tr", {}, swatch, element("th", {}, line.name), element("td", {}, shown(line.values[index]) + range)));
      }
      const x = `${shown(view.x[index])} ${this.spec.xunit || ""}`.trim();
      this.tip.replaceChildren(element("small", {}, x), element("table", {}, body));
      const center = this.plot.valToPos(this.xs[index], "x") + this.plot.bbox.left / devicePixelRatio;
      const right = center > this.width / 2;
      this.tip.style.left = right ? "auto" : `${center + 12}px`;
      this.tip.style.right = right ? `${this.width - center + 12}px` : "auto";
      if (document.activeElement === this.box)
        this.live.textContent = `${x}: ${rows.map(line => `${line.name} ${shown(line.values[index])}`).join(", ")}`;
    }

    leave() {
      if (this.tip) { this.tip.remove(); this.tip = null; }
    }

    key(event) {
      const last = this.xs.length - 1, at = this.at ?? -1;
      const to = { ArrowRight: Math.min(at + 1, last), ArrowLeft: Math.max(at - 1, 0), Home: 0, End: last }[event.key];
      if (event.key === "Escape") return this.leave();
      if (to === undefined) return;
      event.preventDefault();
      this.plot.setCursor({ left: this.plot.valToPos(this.xs[to], "x"), top: 40 }, false);
      this.hover(to);
    }
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const rows = [...table.tBodies[0].rows];
    heads.forEach((head, column) => {
      if (!head.hasAttribute("data-sort")) return;
      const button = element("button", { type: "button" }, ...head.childNodes);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = row => {
          const cell = row.cells[column], number = cell.dataset.value;
          return number === undefined || number === "" ? (head.dataset.sort === "text" ? cell.textContent : null) : +number;
        };
        const ordered = rows.concat().sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          // Rows without a value come last in both directions.
          if (x === null || y === null) return (x === null) - (y === null);
          const order = typeof x === "string" ? x.localeCompare(y) : x - y;
          return down ? -order : order;
        });
        table.tBodies[0].append(...ordered);
      });
    });
  }

  function save(name, text, type) {
    const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  for (const figure of document.querySelectorAll("figure[data-chart]")) drawn.push(new Chart(figure));
  dark.addEventListener("change", () => { for (const chart of drawn) chart.build(); });
  for (const button of document.querySelectorAll("[data-save]"))
    button.addEventListener("click", () => save(button.dataset.save, JSON.stringify(data.document, null, 2), "application/json"));
  for (const button of document.querySelectorAll("[data-copy]"))
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected: copy it now";
      }
    });
  document.documentElement.dataset.ready = "true";
})();
