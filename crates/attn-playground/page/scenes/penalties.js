// Scene 2: ALiBi's slopes and T5's buckets.

import { figure, html, percent, perFrame, Plot, say, short, svg } from "../draw.js";

const byId = id => document.getElementById(id);
const LENGTH = 1024;

/** A width from 1 to 1024 words back on a slider of a hundred steps. */
const back = step => Math.round(2 ** (step / 10));

/** Where a distance lies in a bar, 0 to 1: logarithmic from 1 on, with room for the word itself. */
const along = distance => distance < 1 ? 0 : (1 + Math.log2(distance)) / (1 + Math.log2(LENGTH - 1));

function bars(answer, distance, width) {
  const row = width < 500 ? 34 : 28, left = width < 500 ? 0 : 146, room = width - left - 8, top = 24;
  const height = top + answer.heads.length * row + 6;
  const x = d => left + Math.min(1, along(d)) * room;
  const parts = [];
  for (const d of [1, 4, 16, 64, 256, 1023]) {
    parts.push(svg("line", { class: "grid", x1: x(d), x2: x(d), y1: top - 6, y2: height - 6 }),
      svg("text", { class: "small", x: Math.min(x(d), width - 18), y: 12, "text-anchor": "middle" }, short(d, 4)));
  }
  answer.heads.forEach(({ head, slope }, i) => {
    const y = top + i * row, thick = width < 500 ? 15 : 20, at = y + (width < 500 ? 16 : 0);
    const name = `head ${head + 1}, slope ${short(slope)}`;
    parts.push(svg("text", { class: "small", x: 0, y: width < 500 ? y + 12 : y + 14 }, name));
    const order = answer.distances.map((d, j) => [d, answer.shares[head][j]]).sort(([a], [b]) => a - b);
    const id = `fade${head}`;
    parts.push(svg("linearGradient", { id }, order.map(([d, share]) =>
      svg("stop", { offset: Math.min(1, along(d)), "stop-color": "rgb(var(--heat))", "stop-opacity": Math.max(0.02, share) }))));
    parts.push(svg("rect", { x: left, y: at, width: room, height: thick, rx: 4, fill: `url(#${id})`, stroke: "var(--line)" }));
    if (answer.reach[head] < LENGTH) parts.push(svg("line", { x1: x(answer.reach[head]), x2: x(answer.reach[head]), y1: at, y2: at + thick, stroke: "var(--past)", "stroke-width": 2.5 }));
  });
  parts.push(svg("line", { x1: x(distance), x2: x(distance), y1: top - 6, y2: height - 4, stroke: "var(--s1)", "stroke-width": 2 }));
  return svg("svg", { class: "art", viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" }, parts);
}

function headTable(answer, distance) {
  return html("details", { class: "numbers" }, html("summary", {}, "The numbers"), html("table", { class: "plain", id: "alibi-table" },
    html("thead", {}, html("tr", {}, ["head", "slope", "halves every", `remains ${distance} back`, "a hundredth remains at"].map(name => html("th", { scope: "col" }, name)))),
    html("tbody", {}, answer.heads.map(({ head, slope, half_distance }) => html("tr", {}, html("th", { scope: "row" }, String(head + 1)),
      html("td", {}, figure("slope", slope)), html("td", {}, figure("half_distance", half_distance)),
      html("td", {}, figure("left", answer.at[head], percent(answer.at[head]))), html("td", {}, figure("reach", answer.reach[head])))))));
}

function alibi(ask) {
  const heads = byId("alibi-heads"), steps = byId("alibi-distance"), place = byId("alibi-drawing");
  let open = false;
  const draw = perFrame(() => {
    const distance = back(+steps.value), n = +heads.value;
    byId("alibi-heads-now").textContent = n;
    byId("alibi-distance-now").textContent = distance;
    const answer = ask({ ask: "alibi", heads: n, length: LENGTH, distance });
    const blind = answer.at.filter(share => share < 0.01).length;
    say(byId("alibi-finding"), "Of the weight of a word ", figure("distance", distance, String(distance)), " back, the steepest head keeps ",
      figure("steepest", Math.min(...answer.at), percent(Math.min(...answer.at))), " and the flattest ",
      figure("flattest", Math.max(...answer.at), percent(Math.max(...answer.at))), ". ",
      blind === 0 ? "Every head still sees it." : blind === n ? "No head keeps more than a hundredth." : `${blind} of ${n} heads keep less than a hundredth.`);
    open = place.querySelector("details")?.open ?? open;
    const numbers = headTable(answer, distance);
    numbers.open = open;
    say(place, bars(answer, distance, place.clientWidth), numbers);
  });
  byId("alibi-form").addEventListener("input", draw);
  new ResizeObserver(draw).observe(place);
  draw();
}

function strip(answer, largest, width) {
  const farthest = Math.round(largest * 1.12), height = 92, top = 26, thick = 40;
  const x = d => 4 + d / farthest * (width - 8);
  const parts = [];
  answer.buckets.forEach(({ bucket, first, last }, i) => {
    const from = -last, to = first === null ? farthest : -first + 1;
    parts.push(svg("rect", { x: x(from), y: top, width: Math.max(0.6, x(to) - x(from) - 0.6), height: thick, rx: Math.min(4, (x(to) - x(from)) / 4),
      style: `fill: var(--s${[2, 1, 3, 7][i % 4]}); opacity: .82` }));
    if (x(to) - x(from) > 17) parts.push(svg("text", { x: (x(from) + x(to)) / 2, y: top + 25, "text-anchor": "middle", style: "fill: var(--page)" }, String(bucket)));
  });
  for (let d = 0, step = largest > 256 ? 64 : largest > 96 ? 16 : 8, skip = width < 500 ? 2 : 1; d <= farthest; d += step * skip) {
    parts.push(svg("text", { class: "small", x: Math.min(Math.max(x(d), 6), width - 12), y: top + thick + 18, "text-anchor": "middle" }, String(d)));
  }
  parts.push(svg("text", { class: "small", x: 4, y: 14 }, "words back, and the bucket they fall into"));
  return svg("svg", { class: "art", viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" }, parts);
}

function t5({ ask, later, palette }) {
  const buckets = byId("t5-buckets"), distance = byId("t5-distance"), place = byId("t5-drawing");
  const draw = perFrame(() => {
    byId("t5-buckets-now").textContent = buckets.value;
    byId("t5-distance-now").textContent = distance.value;
    try {
      const answer = ask({ ask: "t5", buckets: +buckets.value, max_distance: +distance.value });
      const alone = answer.buckets.filter(({ first, last }) => first === last).length;
      const wide = answer.buckets.filter(({ first }) => first !== null).reduce((a, b) => b.last - b.first > a.last - a.first ? b : a);
      const last = answer.buckets.at(-1);
      say(byId("t5-finding"), "The nearest ", figure("alone", alone, String(alone)), " distances have a bucket each. The widest bucket with an end holds ",
        figure("widest", wide.last - wide.first + 1, String(wide.last - wide.first + 1)), ` distances, from ${-wide.last} to ${-wide.first} words back; all distances from `,
        figure("last", -last.last, String(-last.last)), " on share the last bucket.");
      const list = answer.buckets.map(({ bucket, first, last }) => html("tr", {}, html("th", { scope: "row" }, String(bucket)),
        html("td", {}, String(-last)), html("td", {}, first === null ? "no end" : String(-first))));
      const open = place.querySelector("details")?.open ?? false;
      say(place, strip(answer, +distance.value, place.clientWidth), html("details", { class: "numbers", open }, html("summary", {}, "The numbers"),
        html("div", { class: "scroll", tabindex: 0 }, html("table", { id: "t5-table" },
          html("thead", {}, html("tr", {}, ["bucket", "from", "to words back"].map(name => html("th", { scope: "col" }, name)))), html("tbody", {}, list)))));
    } catch (error) {
      say(byId("t5-finding"), error.message);
      say(place);
    }
  });
  byId("t5-form").addEventListener("input", draw);
  new ResizeObserver(draw).observe(place);
  draw();
  byId("t5-learn").addEventListener("click", async ({ target }) => {
    const learned = byId("t5-learned");
    target.disabled = true;
    learned.hidden = false;
    try {
      const { bias } = await later({ ask: "t5-learned" }, { model: "tiny-t5" });
      const x = bias.distances.map(d => -d), all = bias.values.flat();
      const series = bias.values.map((y, head) => ({ name: `head ${head + 1}`, color: `var(--s${[1, 2, 3, 4][head % 4]})`, dash: palette.dashes[Math.floor(head / 4)], x: [...x].reverse(), y: [...y].reverse() }));
      new Plot(learned, { label: "Learned bias by words back", height: 260 }).set({
        x: { min: 1, max: Math.max(...x), log: true, label: "words back", unit: "words back" },
        y: { min: Math.min(...all) - 0.2, max: Math.max(...all) + 0.2 }, series, marks: [{ y: 0, label: "" }],
      });
      target.hidden = true;
    } catch (error) {
      say(learned, html("p", { class: "trouble" }, error.message));
      target.disabled = false;
    }
  });
}

export function begin(scene) {
  alibi(scene.ask);
  t5(scene);
}
