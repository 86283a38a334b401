// Starts the program, hands the scenes a way to ask it, and says when the page can be used.

import { Attn, compile } from "./attn.js";
import { html } from "./draw.js";
import * as order from "./scenes/order.js";
import * as penalties from "./scenes/penalties.js";
import * as rotation from "./scenes/rotation.js";
import * as speeds from "./scenes/speeds.js";
import * as stretch from "./scenes/stretch.js";
import * as generate from "./scenes/generate.js";
import * as config from "./scenes/config.js";

const SCENES = { order, penalties, rotation, speeds, stretch, generate, config };

function trouble(error) {
  const place = document.getElementById("trouble");
  place.textContent = `The scenes can't be shown: ${error.message}`;
  place.hidden = false;
}

/** The project's palette as variables of the page: --s0 to --s7, for light and dark. */
function colors({ light, dark }) {
  const variables = list => list.map((color, i) => `--s${i}: ${color};`).join(" ");
  document.head.append(html("style", {}, `:root { ${variables(light)} }
@media (prefers-color-scheme: dark) { :root { ${variables(dark)} } }`));
}

/** A worker that runs its own copy of the program, for questions that take longer than a frame. */
class Background {
  constructor(module) {
    this.number = 0;
    this.waiting = new Map();
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.postMessage({ module });
    this.worker.onmessage = ({ data }) => this.hear(data);
  }

  hear({ id, part, result, error }) {
    const question = this.waiting.get(id);
    if (!question) return;
    if (part !== undefined) return question.tell?.(part);
    this.waiting.delete(id);
    if (error !== undefined) question.reject(new Error(error));
    else question.resolve(result);
  }

  /** Asks a question, with a model that is fetched first if need be; `signal` cancels the question. */
  ask(question, { model = null, tell = null, signal = null } = {}) {
    const id = ++this.number;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, tell });
      this.worker.postMessage({ id, question, model });
      signal?.addEventListener("abort", () => {
        if (!this.waiting.delete(id)) return;
        this.worker.postMessage({ drop: id });
        reject(signal.reason);
      });
    });
  }
}

async function start() {
  const module = await compile();
  const attn = await Attn.start(module);
  const palette = attn.ask({ ask: "palette" });
  colors(palette);
  let background = null;
  // What was answered last in each scene: for looking at, and for tests.
  const answers = globalThis.attnPlayground = {};
  const scene = name => ({
    palette,
    ask: question => (answers[question.ask] = attn.ask(question)),
    later: async (question, options) => {
      background ??= new Background(module);
      return answers[question.ask] = await background.ask(question, options);
    },
  });
  for (const [name, { begin }] of Object.entries(SCENES)) {
    begin(scene(name));
    // The first scene can be used before the last is there.
    await new Promise(done => setTimeout(done));
    performance.mark(name);
  }
  document.documentElement.dataset.ready = "yes";
}

start().catch(trouble);
