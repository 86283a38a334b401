// Scene 7: the reader's own config.json.

import { figure, html, Plot, say, short } from "../draw.js";

const byId = id => document.getElementById(id);

/** Published configs, reduced to the keys that say how positions are added. */
const EXAMPLES = {
  "Llama 3.1 8B": { architectures: ["LlamaForCausalLM"], model_type: "llama", hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32,
    num_attention_heads: 32, num_key_value_heads: 8, vocab_size: 128256, rms_norm_eps: 1e-5, hidden_act: "silu", max_position_embeddings: 131072, rope_theta: 500000,
    rope_scaling: { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 }, tie_word_embeddings: false },
  "Qwen2.5 7B": { architectures: ["Qwen2ForCausalLM"], model_type: "qwen2", hidden_size: 3584, intermediate_size: 18944, num_hidden_layers: 28,
    num_attention_heads: 28, num_key_value_heads: 4, vocab_size: 152064, rms_norm_eps: 1e-6, hidden_act: "silu", max_position_embeddings: 32768, rope_theta: 1000000, tie_word_embeddings: false },
  "BLOOM 560M": { architectures: ["BloomForCausalLM"], model_type: "bloom", hidden_size: 1024, n_layer: 24, n_head: 16, vocab_size: 250880, layer_norm_epsilon: 1e-5 },
};

const names = { rope: "rotation (RoPE)", rotary_table: "rotation by a table", alibi: "a penalty by distance (ALiBi)", t5: "learned penalties by distance (T5)",
  learned: "learned positions", sinusoidal: "sinusoids added to the words", nope: "no positions" };

function layersOf({ layers, sliding_window, chunk }) {
  const where = layers.length === 1 ? `layer ${layers[0]}` : `${layers.length} layers`;
  return `${where}${sliding_window ? `, which see ${sliding_window.toLocaleString("en")} tokens back` : ""}${chunk ? `, within chunks of ${chunk.toLocaleString("en")}` : ""}`;
}

function rope(group, { trained_context: trained, length }, place) {
  const { rope } = group.effects, slow = rope.pairs.filter(pair => pair.trained_turns !== null && pair.trained_turns < 1).length;
  const waves = html("div", {}), decay = html("div", {});
  place.append(html("p", {}, `Base ${short(group.encoding.theta)}, ${rope.pairs.length} pairs. `, figure("slow", slow, String(slow)),
    " of them never make a full turn within the trained length. ",
    rope.bound.horizon === null ? `Without scaling an equal word gets a higher score than a random one at all ${rope.bound.searched.toLocaleString("en")} distances tried.`
      : ["Without scaling an equal word gets a higher score than a random one up to ", figure("horizon", rope.bound.horizon), " tokens back."]),
  html("h4", {}, "Tokens per turn of each pair"), waves);
  const x = rope.pairs.map(({ pair }) => pair + 1), y = rope.pairs.map(({ wavelength }) => wavelength), real = y.filter(value => value !== null);
  new Plot(waves, { label: "Tokens per turn of each pair", height: 260 }).set({
    x: { min: 1, max: x.length, whole: true, label: "pair, fastest first", unit: "(pair)" }, y: { min: 5, max: 10 ** Math.ceil(Math.log10(Math.max(...real, length))), log: true },
    series: [{ name: "tokens per turn", color: "var(--s1)", width: 2.5, x, y }],
    marks: [...(trained ? [{ y: trained, label: "trained length", color: "var(--past)" }] : []), ...(length !== trained ? [{ y: length, label: "wanted length", color: "var(--s2)" }] : [])],
  });
  if (rope.scalings.length === 0) return;
  const rows = rope.scalings.map(({ name, kept, between, divided, attention_factor, horizon }) => html("tr", {}, html("th", { scope: "row" }, name),
    html("td", {}, String(kept)), html("td", {}, String(between)), html("td", {}, String(divided)), html("td", {}, figure("attention_factor", attention_factor)),
    html("td", {}, horizon === null ? `over ${short(rope.bound.searched)}` : short(horizon))));
  place.append(html("div", { class: "scroll", tabindex: 0 }, html("table", {}, html("caption", {}, `What each scaling does for ${length.toLocaleString("en")} tokens`),
    html("thead", {}, html("tr", {}, ["scaling", "pairs kept", "between", "slowed most", "times cos and sin", "reach in tokens"].map(name => html("th", { scope: "col" }, name)))),
    html("tbody", {}, rows))));
}

function alibi(group, place) {
  place.append(html("div", { class: "scroll", tabindex: 0 }, html("table", {}, html("thead", {}, html("tr", {}, ["head", "slope", "weight halves in"].map(name => html("th", { scope: "col" }, name)))),
    html("tbody", {}, group.effects.heads.map(({ head, slope, half_distance }) => html("tr", {}, html("th", { scope: "row" }, String(head + 1)),
      html("td", {}, figure("slope", slope)), html("td", {}, `${short(half_distance)} tokens`)))))),
  html("p", {}, "Nothing here depends on the length, so there is nothing to scale."));
}

function t5(group, place) {
  const rows = group.effects.bucket_ranges.map(({ bucket, first, last }) => html("tr", {}, html("th", { scope: "row" }, String(bucket)), html("td", {}, first ?? "no end"), html("td", {}, last ?? "no end")));
  place.append(html("div", { class: "scroll", tabindex: 0 }, html("table", {}, html("caption", {}, "Distances are those of the key minus those of the query"),
    html("thead", {}, html("tr", {}, ["bucket", "first distance", "last distance"].map(name => html("th", { scope: "col" }, name)))), html("tbody", {}, rows))));
}

function advice({ explained, factor, settings }) {
  const { trained_context: trained, length } = explained;
  if (trained === null) return ["The config does not say what length the model was trained for."];
  const parts = ["Trained for ", figure("trained", trained), " tokens. "];
  if (length <= trained) return [...parts, `${length.toLocaleString("en")} tokens are not more than that: nothing has to be scaled.`];
  parts.push(`For ${length.toLocaleString("en")} a scaling needs a factor of `, figure("factor", factor), ".");
  const own = explained.position.find(group => group.encoding.factor);
  if (own) return [...parts, ` The config already has one: ${own.encoding.rope_type} with factor ${short(own.encoding.factor)}.`];
  if (settings.length === 0) return ["Trained for ", figure("trained", trained), " tokens. This kind of position has no factor to set."];
  return parts;
}

function show(answer) {
  const { explained, caveat, notes, settings } = answer;
  say(byId("config-finding"), advice(answer));
  const place = byId("config-answer");
  const groups = explained.position.map(group => {
    const part = html("div", {}, html("h3", {}, `${explained.position.length > 1 ? `${group.stack}: ` : ""}${names[group.encoding.kind] ?? group.encoding.kind}`), html("p", { class: "soft" }, layersOf(group)));
    if (group.effects.rope) rope(group, explained, part);
    if (group.effects.heads) alibi(group, part);
    if (group.effects.bucket_ranges) t5(group, part);
    if (group.encoding.kind === "learned") part.append(html("p", {}, "One learned row per position, up to ", figure("end", group.encoding.max_position_embeddings), ": longer texts can't be read."));
    return part;
  });
  const snippets = settings.map(({ mode, factor, rope_parameters, llama_cpp }) => html("div", {}, html("h4", {}, `${mode}, factor ${short(factor, 4)}`),
    html("pre", { "data-setting": mode }, `"rope_parameters": ${JSON.stringify(rope_parameters, null, 2)}`), llama_cpp ? html("pre", {}, `llama.cpp: ${llama_cpp}`) : null));
  say(place, caveat ? html("p", { class: "trouble" }, caveat) : [], notes.map(note => html("p", { class: "soft" }, note)), groups,
    snippets.length ? [html("h3", {}, "How to set it"), html("p", {}, "In config.json for transformers, and as options of llama.cpp. YaRN is the usual first choice; dynamic scaling leaves short texts exactly as they were."), snippets] : []);
}

export function begin({ later }) {
  const text = byId("config-text"), length = byId("config-length"), drop = byId("config-drop");
  let name = "config.json", running = null;
  const explain = async () => {
    running?.abort(new Error("another config was given"));
    if (text.value.trim() === "") return;
    const mine = running = new AbortController();
    say(byId("config-finding"), "reading …");
    try {
      show(await later({ ask: "config", name, text: text.value, length: length.value ? +length.value : null }, { signal: mine.signal }));
    } catch (error) {
      if (mine.signal.aborted) return;
      say(byId("config-finding"), error.message);
      say(byId("config-answer"));
    }
  };
  const read = async file => {
    if (!file) return;
    name = file.name;
    text.value = await file.text();
    explain();
  };
  say(byId("config-examples"), Object.entries(EXAMPLES).map(([label, config]) => html("button", { type: "button", onclick: () => {
    name = label;
    text.value = JSON.stringify(config, null, 2);
    explain();
  } }, label)));
  byId("config-file").addEventListener("change", ({ target }) => read(target.files[0]));
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, event => { event.preventDefault(); drop.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, event => { event.preventDefault(); drop.classList.remove("over"); });
  drop.addEventListener("drop", event => read(event.dataTransfer.files[0]));
  let later_ = null;
  const soon = () => { clearTimeout(later_); later_ = setTimeout(explain, 400); };
  text.addEventListener("input", () => { name = "config.json"; soon(); });
  length.addEventListener("input", soon);
  byId("config-form").addEventListener("submit", event => event.preventDefault());
}
