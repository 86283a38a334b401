// The program behind the page: src/wasm.rs, by way of the glue that wasm-bindgen writes for it.

import init, { Program } from "./program.js";

/** Fetches and compiles the program. */
export async function compile() {
  const url = new URL("./program_bg.wasm", import.meta.url), response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  const type = response.headers.get("content-type") ?? "";
  // Some web hosts don't know the type of .wasm, and compiling on the way asks for it.
  if (type.startsWith("application/wasm")) return WebAssembly.compileStreaming(response);
  return WebAssembly.compile(await response.arrayBuffer());
}

/** A running program. */
export class Attn {
  static async start(module) {
    await init({ module_or_path: module });
    const attn = new Attn();
    attn.program = new Program();
    return attn;
  }

  /** Passes a file to the program, for the next question. */
  give(bytes) {
    this.program.give(bytes);
  }

  /** Asks a question; calls `tell` with what arrives before the answer is complete. */
  ask(question, tell = null) {
    try {
      return JSON.parse(this.program.ask(JSON.stringify(question), tell ? part => tell(JSON.parse(part)) : undefined));
    } catch (error) {
      if (error instanceof WebAssembly.RuntimeError) throw new Error("the program stopped; the browser's console says why. Load the page again.");
      throw error;
    }
  }
}
