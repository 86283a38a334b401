// Loads and runs models in a worker: this takes longer than a frame, and the page has to keep responding.

import { Attn } from "./attn.js";

let attn = null;
const models = new Set();

async function bytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function load(name) {
  if (models.has(name)) return;
  const at = new URL(`./models/${name}/`, self.location.href);
  const files = await Promise.all(["config.json", "model.safetensors", "tokenizer.json"].map(file => bytes(new URL(file, at))));
  files.forEach(file => attn.give(file));
  attn.ask({ ask: "load", name });
  models.add(name);
}

let last = Promise.resolve();
const dropped = new Set();

async function answer({ id, question, model }) {
  if (dropped.delete(id)) return;
  try {
    if (model) await load(model);
    const result = attn.ask(question, part => postMessage({ id, part }));
    postMessage({ id, result });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
}

self.onmessage = ({ data }) => {
  if (data.drop !== undefined) return void dropped.add(data.drop);
  if (data.module) last = last.then(async () => { attn = await Attn.start(data.module); });
  // Waiting for the event loop first lets cancelled questions be dropped.
  else last = last.then(() => new Promise(done => setTimeout(done))).then(() => answer(data));
};
