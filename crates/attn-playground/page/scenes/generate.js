// Scene 6: six models that differ only in their position encoding continue a beginning.

import { html, say, short } from "../draw.js";

const byId = id => document.getElementById(id);
const TRAINED = 256;
const MODELS = [
  ["tiny-rope", "rotation (RoPE)"], ["tiny-alibi", "a penalty by distance (ALiBi)"], ["tiny-t5", "learned penalties (T5)"],
  ["tiny-sinusoidal", "sinusoids"], ["tiny-learned", "learned positions"], ["tiny-nope", "none at all"],
];

function card([name, title], i) {
  const written = html("p", { class: "written", tabindex: 0, "aria-label": `What ${title} wrote` }), note = html("p", { class: "soft" }, "not loaded yet");
  const element = html("article", { class: "card", style: `border-top-color: var(--s${1 + i})`, "data-model": name }, html("h3", {}, title), note, written);
  return { name, element, written, note };
}

async function write(later, { name, written, note }, question, signal) {
  let past = false;
  note.textContent = "writing …";
  say(written, html("span", { class: "given" }, question.prompt));
  const tell = ({ text, at }) => {
    if (!past && at > TRAINED) {
      past = true;
      written.append(html("span", { class: "past-mark", title: "the trained length is passed here" }, String(TRAINED)));
    }
    written.append(text);
  };
  const answer = await later({ ...question, model: name }, { model: name, tell, signal });
  note.textContent = `${answer.new_tokens} tokens${answer.stopped ? ", then it ended the text" : answer.at_the_end ? ": its positions end there" : ""}`;
  written.dataset.text = answer.text;
}

export function begin({ later }) {
  const cards = MODELS.map(card), tokens = byId("generate-tokens"), temperature = byId("generate-temperature"), state = byId("generate-state");
  say(byId("generate-cards"), cards.map(({ element }) => element));
  const tell = () => {
    byId("generate-tokens-now").textContent = tokens.value;
    byId("generate-temperature-now").textContent = short(+temperature.value / 10, 2);
  };
  byId("generate-form").addEventListener("input", tell);
  tell();
  let running = null;
  byId("generate-form").addEventListener("submit", async event => {
    event.preventDefault();
    running?.abort(new Error("another beginning was given"));
    const mine = running = new AbortController();
    const question = { ask: "generate", prompt: byId("generate-prompt").value, tokens: +tokens.value, temperature: +temperature.value / 10, seed: 0 };
    try {
      for (const one of cards) {
        state.textContent = `${one.name} writes …`;
        await write(later, one, question, mine.signal);
      }
      state.textContent = "All six are done.";
    } catch (error) {
      if (!mine.signal.aborted) state.textContent = error.message;
    }
  });
}
