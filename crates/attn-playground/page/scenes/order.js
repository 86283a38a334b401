// Scene 1: two sentences under one head, with and without positions.

import { figure, html, percent, perFrame, say } from "../draw.js";

const byId = id => document.getElementById(id);

/** The rows of a sentence in the order in which they are listed: words of both first, as the first sentence has them. */
function listed(answer, sentence) {
  const shared = answer.shared.map(({ rows }) => rows[sentence]);
  return [...shared, ...answer.words[sentence].keys()].filter((row, i, all) => all.indexOf(row) === i);
}

function table(answer, sentence, title) {
  const rows = sentence === 0 ? [...answer.words[0].keys()] : listed(answer, 1);
  const words = answer.words[sentence], weights = answer.weights[sentence];
  const mark = row => {
    const at = answer.shared.findIndex(({ rows }) => rows[sentence] === row);
    if (at < 0) return null;
    const same = answer.shared[at].same;
    return html("span", { class: same ? "mark-dot same" : "mark-dot", style: `color: var(--s${1 + at % 7})`,
      role: "img", "aria-label": same ? "the same in both sentences" : "differs between the sentences" });
  };
  const cell = share => html("td", { style: `--v: ${share.toFixed(3)}`, "data-value": share, class: share === 0 ? "unseen" : share > 0.5 ? "strong" : null },
    share === 0 ? "–" : percent(share));
  return html("table", { class: rows.length > 7 ? "heat dense" : "heat" }, html("caption", {}, title),
    html("thead", {}, html("tr", {}, html("td", { class: "corner", style: "background: none" }), rows.map(row => html("th", { scope: "col", title: words[row] }, words[row])))),
    html("tbody", {}, rows.map(row => html("tr", {}, html("th", { scope: "row", title: words[row] }, mark(row), words[row]),
      rows.map(key => cell(weights[row][key]))))));
}

function finding(answer, encoding) {
  const { shared, same } = answer;
  if (shared.length === 0) return ["The two sentences have no word in common: there is nothing to compare."];
  const rearranged = shared.length === answer.words[0].length && shared.length === answer.words[1].length;
  const count = [figure("same", same, String(same)), " of ", figure("shared", shared.length, String(shared.length))];
  if (same === shared.length && encoding === "none") {
    return ["Without positions ", ...count, " words give the same result in both sentences. ",
      rearranged ? "This head cannot tell the two sentences apart: it cannot know who did what to whom." : "Their places do not matter."];
  }
  if (same === shared.length) return [...count, " words give the same result, since they stand in the same places among the same words."];
  const most = shared.reduce((a, b) => a.difference > b.difference ? a : b);
  if (!rearranged && encoding === "none") {
    return [...count, " words that they share give the same result. The sentences do not have the same words, so the results differ even without positions."];
  }
  const how = { none: "Without positions", causal: "Each word now sees only the words before it, and these differ with the order:", sinusoidal: "With sinusoids added,", rope: "With rotation," }[encoding];
  return [`${how} `, ...count, " words give the same result. ", html("q", {}, most.word), " differs most, by ", figure("difference", most.difference), "."];
}

export function begin({ ask }) {
  const form = byId("order-form"), first = byId("order-first"), second = byId("order-second");
  const draw = perFrame(() => {
    const encoding = new FormData(form).get("encoding");
    try {
      const answer = ask({ ask: "order", sentences: [first.value, second.value], encoding });
      say(byId("order-finding"), finding(answer, encoding));
      say(byId("order-tables"), table(answer, 0, `“${first.value.trim()}”`), table(answer, 1, `“${second.value.trim()}”`));
    } catch (error) {
      say(byId("order-finding"), error.message);
    }
  });
  form.addEventListener("input", draw);
  form.addEventListener("submit", event => event.preventDefault());
  draw();
}
