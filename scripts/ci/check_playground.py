#!/usr/bin/env python3
"""Opens the playground (attn playground) in headless Chromium and checks what a person would look for:

    scripts/ci/check_playground.py ATTN [--dir PAGE] [--shots FOLDER]

- every scene shows the figures that the command ATTN prints as JSON for the same question;
- the first scene can be used within 2 seconds, the page is under 6 MB before a model is asked for, a model is fetched only when it is
  needed, and a tiny model scores 512 tokens in under 3 seconds;
- no error on the console, nothing fetched from other sites, in light and dark, at 1280 and at 380 px;
- charts react to the keyboard, text has the contrast that WCAG 2.1 AA requires, the page never scrolls sideways, ids are unique.

--dir: the folder that scripts/build_playground.sh wrote, if it is not where ATTN looks for it.
--shots: writes screenshots to this folder.
Needs Python 3.9 and Chromium (CHROMIUM names the program), and no packages: it talks to Chromium through a pipe.
"""

import argparse
import base64
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from check_report import CONTRAST, Browser

SIZES = [(1280, "light"), (1280, "dark"), (380, "light"), (380, "dark")]
MODES = ["none", "linear", "yarn", "rerope", "streaming"]
#: The page's program is for another processor and reads the text in parts, so sums are rounded differently.
NATS = 1e-4

HELPERS = r"""
globalThis.check = {
  frames: () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))),
  async set(id, value) {
    const input = document.getElementById(id);
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    await check.frames();
  },
  figures: (place, name) => [...document.querySelectorAll(`${place} data[data-figure="${name}"]`)].map(x => +x.value),
  rows: place => [...document.querySelectorAll(`${place} tbody tr`)].map(row => [...row.cells].map(cell => cell.textContent)),
  series: id => document.getElementById(id).plot.data.series.map(({ name, x, y }) => ({ name, x, y })),
  async until(test) {
    for (const end = performance.now() + 60000; performance.now() < end;) {
      if (test()) return;
      await new Promise(done => setTimeout(done, 20));
    }
    throw new Error(`never came: ${test}`);
  },
};
"""


class Checks:
    """Counts what was compared, and keeps what differs."""

    def __init__(self):
        self.problems, self.compared = [], 0

    def equal(self, what, found, expected):
        self.compared += 1
        if found != expected:
            self.problems.append(f"{what}: {str(found)[:120]} instead of {str(expected)[:120]}")

    def near(self, what, found, expected, tolerance=1e-12):
        pairs = list(zip(found, expected)) if isinstance(expected, list) else [(found, expected)]
        if isinstance(expected, list) and len(found) != len(expected):
            self.problems.append(f"{what}: {len(found)} numbers instead of {len(expected)}")
        for a, b in pairs:
            self.compared += 1
            if (a is None) != (b is None) or (a is not None and abs(a - b) > tolerance * max(1, abs(b))):
                self.problems.append(f"{what}: {a} instead of {b}")
                return

    def alike(self, what, found, expected):
        """Documents are equal except for the last digits of numbers, which another processor's functions round differently."""
        if isinstance(expected, dict) and isinstance(found, dict):
            self.equal(f"{what}: keys", sorted(found), sorted(expected))
            for key in expected.keys() & found.keys():
                self.alike(f"{what}.{key}", found[key], expected[key])
        elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
            for i, (a, b) in enumerate(zip(found, expected)):
                self.alike(f"{what}[{i}]", a, b)
        elif isinstance(expected, float) and isinstance(found, (int, float)):
            self.near(what, found, expected, 1e-9)
        else:
            self.equal(what, found, expected)

    def true(self, what, holds):
        self.compared += 1
        if not holds:
            self.problems.append(what)


class Page:
    """The playground in a browser."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url

    def open(self, width, scheme):
        self.browser.open(self.url, width, 900, scheme)
        self.browser.run(f"(() => {{ {HELPERS} }})()")
        self.browser.run("check.frames()")

    def run(self, script):
        return self.browser.run(script)

    def set(self, name, value):
        self.run(f"check.set({json.dumps(name)}, {json.dumps(value)})")

    def figures(self, place, name):
        return self.run(f"check.figures({json.dumps(place)}, {json.dumps(name)})")

    def rows(self, place):
        return self.run(f"check.rows({json.dumps(place)})")

    def series(self, name):
        return {line["name"]: line for line in self.run(f"check.series({json.dumps(name)})")}

    def answer(self, name):
        return self.run(f"attnPlayground[{json.dumps(name)}]")

    def complaints(self):
        for complaint in self.browser.complaints(self.url):
            if not complaint.startswith(("loads " + self.url, "loads data:")):
                yield complaint


def command(attn, *args):
    done = subprocess.run([attn, *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"attn {' '.join(args)}: {done.stderr}")
    return done.stdout


def document(attn, *args):
    return json.loads(command(attn, *args, "--json"))


def explain(attn, config, *args):
    """The explanation of a config's first encoding, and the whole document."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        found = document(attn, "explain", file.name, *args)
    return found["position"][0]["effects"], found


def check_order(page, checks):
    shares = "[...document.querySelectorAll('#order-tables table')].map(t => [...t.tBodies[0].rows].map(r => [...r.querySelectorAll('td')].map(c => +c.dataset.value)))"
    page.set("order-first", "the dog bites a man")
    page.set("order-second", "a man bites the dog")
    first, second = page.run(shares)
    # Both tables list the words in the same order, so without positions they are the same table.
    for a, b in zip(first, second):
        checks.near("order: a row without positions", a, b)
        checks.near("order: a row's sum", sum(a), 1.0)
    checks.equal("order: words that are the same", page.figures("#order", "same"), [5])
    for encoding in ["causal", "sinusoidal", "rope"]:
        page.run(f"document.querySelector('[name=encoding][value={encoding}]').click()")
        page.run("check.frames()")
        checks.equal(f"order: words that are the same under {encoding}", page.figures("#order", "same"), [0])
        a, b = page.run(shares)
        checks.true(f"order: {encoding} changes the table", a != b)
    page.run("document.querySelector('[name=encoding][value=none]').click()")


def check_penalties(page, checks, attn):
    for heads in [8, 12]:
        page.set("alibi-heads", heads)
        config = {"model_type": "bloom", "hidden_size": 16 * heads, "n_layer": 1, "n_head": heads, "vocab_size": 64}
        effects, _ = explain(attn, config, "--length", "1024")
        for name in ["slope", "half_distance"]:
            checks.near(f"penalties: {name} of {heads} heads", page.figures("#alibi-table", name), [head[name] for head in effects["heads"]])
        distance = page.answer("alibi")["distances"]
        share = dict(zip(effects["bias"]["distances"], effects["bias"]["values"][0]))
        for d, found in zip(distance, page.answer("alibi")["shares"][0]):
            checks.near("penalties: a share", found, math.exp(share[-d]))
    page.set("t5-buckets", 32)
    page.set("t5-distance", 128)
    effects = document(attn, "explain", "tiny-t5")["position"][0]["effects"]
    end = lambda distance: "no end" if distance is None else str(-distance)
    rows = [[str(r["bucket"]), end(r["last"]), end(r["first"])] for r in reversed(effects["bucket_ranges"])]
    checks.equal("penalties: T5's buckets", page.rows("#t5-table"), rows)
    page.run("document.getElementById('t5-learn').click()")
    page.run("check.until(() => document.getElementById('t5-learned').plot?.data)")
    lines = page.series("t5-learned")
    for head, values in enumerate(effects["bias"]["values"]):
        checks.near("penalties: what T5 learned", lines[f"head {head + 1}"]["y"], values[::-1])


def check_rotation(page, checks):
    found = []
    for gap, shift in [(7, 0), (7, 33), (7, 60), (0, 5), (40, 1)]:
        page.set("rotation-gap", gap)
        page.set("rotation-shift", shift)
        answer = page.answer("rotation")
        speed = (answer["angles"][0] - answer["angles"][1]) / gap if gap else None
        if gap:
            checks.near("rotation: the product", answer["dot"], math.cos(gap * speed), 1e-9)
            checks.near("rotation: its curve", answer["curve"][gap], answer["dot"], 1e-9)
        checks.near("rotation: the product that is shown", page.figures("#rotation", "dot"), [answer["dot"]])
        found.append(answer["dot"])
    checks.near("rotation: both moved", found[:3], [found[0]] * 3, 1e-9)
    checks.near("rotation: together", found[3], 1.0)


def check_speeds(page, checks, attn):
    effects = document(attn, "explain", "tiny-austen", "--length", "512")["position"][0]["effects"]
    pairs = effects["rope"]["pairs"]
    for figure, key in [("inv_freq", "inv_freq"), ("wavelength", "wavelength"), ("turns", "trained_turns")]:
        checks.near(f"speeds: {key}", page.figures("#speeds-table", figure), [pair[key] for pair in pairs])
    checks.equal("speeds: unfinished pairs", page.figures("#speeds", "unfinished"), [sum(pair["trained_turns"] < 1 for pair in pairs)])
    page.run("document.querySelector('[data-preset=all]').click()")
    page.set("speeds-gap", 100)
    score = sum(math.cos(100 * pair["inv_freq"]) for pair in pairs) / len(pairs)
    checks.near("speeds: the sum of all pairs", page.figures("#speeds-finding", "score"), [score], 1e-9)
    decay = next(curve for curve in effects["rope"]["decay"] if curve["name"] == "none")
    found = page.answer("speeds")["decay"]
    checks.near("speeds: the decay", [found[at] for at in decay["at"]], decay["values"])
    sliders = "document.querySelectorAll('#speeds-mixer input')"
    page.run(f"(() => {{ {sliders}.forEach((x, i) => {{ x.value = i === 3 ? 60 : 0 }}); {sliders}[0].dispatchEvent(new Event('input', {{ bubbles: true }})); return check.frames() }})()")
    checks.near("speeds: one pair", page.figures("#speeds-finding", "score"), [math.cos(100 * pairs[3]["inv_freq"])], 1e-9)


def check_stretch(page, checks, attn):
    page.set("stretch-length", 4)
    page.set("stretch-factor", 30)
    rope = document(attn, "explain", "tiny-austen", "--length", "1024")["position"][0]["effects"]["rope"]
    for scaling in rope["scalings"]:
        name = scaling["name"]
        page.set("stretch-mode", name)
        found = page.answer("stretch")
        for key in ["factor", "attention_factor", "kept", "between", "divided", "horizon"]:
            checks.equal(f"stretch: {key} of {name}", found["scaling"][key], scaling[key])
        checks.near(f"stretch: {name}", found["scaling"]["divided_by"], scaling["divided_by"])
        own = document(attn, "explain", "tiny-austen", "--length", "1024", "--rope-scaling", name, "--rope-factor", "4")
        waves = [pair["wavelength"] for pair in own["position"][0]["effects"]["rope"]["pairs"]]
        checks.near(f"stretch: wavelengths of {name}", page.series("stretch-pairs")[name]["y"], waves)
        slowest = page.series("stretch-distances").get("to the slowest pair") or page.series("stretch-distances")["to every pair"]
        checks.near(f"stretch: distances under {name}", slowest["y"][1000], 1000 / scaling["divided_by"][-1], 1e-6)
    page.set("stretch-mode", "rerope")
    checks.near("stretch: ReRoPE's far distance", page.series("stretch-distances")["to every pair"]["y"][900], 128.0, 1e-6)


def check_score(page, checks, attn):
    """Losses of the text on the page, and how long they take."""
    page.set("stretch-length", 2)
    page.set("stretch-factor", 15)
    text = page.run("document.getElementById('score-text').value")
    start = "document.getElementById('score-form').requestSubmit()"
    # Once with one mode, which fetches the model.
    page.run("document.querySelectorAll('#score-modes input').forEach(box => { box.checked = box.value === 'none' })")
    done = "check.until(() => document.querySelectorAll('#score-results tbody tr').length === {} && !document.getElementById('score-state').textContent.includes('…'))"
    page.run(f"({start}, {done.format(1)})")
    began = time.monotonic()
    page.run(f"({start}, {done.format(1)})")
    seconds = time.monotonic() - began
    checks.true(f"score: 512 tokens took {seconds:.2f} seconds", seconds < 3)
    page.run(f"document.querySelectorAll('#score-modes input').forEach(box => {{ box.checked = {json.dumps(MODES)}.includes(box.value) }})")
    page.run(f"({start}, {done.format(len(MODES))})")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        file.write_text(text)
        cells = document(attn, "compare", "tiny-austen", "--text", str(file), "--contexts", "512", "--max-tokens", "512",
                         "--modes", ",".join(MODES), "--factor", "2")["cells"]
    cells = {cell["mode"]: cell for cell in cells}
    checks.equal("score: modes", [row[0] for row in page.rows("#score-results")], MODES)
    for name in ["nll", "perplexity", "last_quarter_perplexity"]:
        checks.near(f"score: {name}", page.figures("#score-results", name), [cells[mode][name] for mode in MODES], NATS)
    for mode, line in page.series("score-plot").items():
        checks.near(f"score: curve of {mode}", line["y"], cells[mode]["curve"], NATS)
    return seconds


def check_generate(page, checks, attn):
    page.set("generate-tokens", 64)
    page.set("generate-temperature", 0)
    page.run("(document.getElementById('generate-form').requestSubmit(), check.until(() => document.getElementById('generate-state').textContent.includes('done')))")
    for model in page.run("[...document.querySelectorAll('[data-model]')].map(card => card.dataset.model)"):
        lines = command(attn, "generate", model, "-p", "It was a truth", "-n", "64", "--temperature", "0", "--json").splitlines()
        text = "".join(json.loads(line).get("text", "") for line in lines)
        checks.equal(f"generate: {model}", page.run(f"document.querySelector('[data-model={model}] .written').dataset.text"), text)


def check_config(page, checks, attn):
    for label in page.run("[...document.querySelectorAll('#config-examples button')].map(button => button.textContent)"):
        page.run("delete attnPlayground.config")
        page.run(f"[...document.querySelectorAll('#config-examples button')].find(button => button.textContent === {json.dumps(label)}).click()")
        page.run("check.until(() => attnPlayground.config)")
        _, expected = explain(attn, json.loads(page.run("document.getElementById('config-text').value")))
        found = page.answer("config")["explained"]
        checks.alike(f"config: {label}", {**found, "model": None}, {**expected, "model": None})
        if page.answer("config")["factor"] and page.figures("#config-finding", "factor"):
            checks.near(f"config: factor for {label}", page.figures("#config-finding", "factor"), [expected["length"] / expected["trained_context"]])
    page.run("check.frames()")


def check_keyboard(page, checks):
    for chart in page.run("[...document.querySelectorAll('.plot')].map((_, i) => i)"):
        told = page.run(f"""(async () => {{
          const box = document.querySelectorAll(".plot")[{chart}], live = box.parentElement.querySelector("[aria-live]");
          if (!box.parentElement.plot.data) return ["nothing drawn yet", true, "x"];
          box.focus();
          for (const key of ["Home", "ArrowRight"]) box.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
          await check.frames();
          return [live.textContent, document.activeElement === box, box.getAttribute("aria-label")];
        }})()""")
        checks.true(f"chart {told[2]} does not answer to the keyboard", all(told))


def check_weight(page, checks):
    resources = page.run("performance.getEntriesByType('resource').map(r => [r.name, r.encodedBodySize])")
    size = sum(size for _, size in resources) + page.run("performance.getEntriesByType('navigation')[0].encodedBodySize")
    checks.true(f"the page weighs {size / 1e6:.1f} MB", 0 < size < 6e6)
    checks.equal("models fetched unasked", [name for name, _ in resources if "/models/" in name], [])
    first = page.run("performance.getEntriesByName('order')[0].startTime")
    checks.true(f"the first scene took {first:.0f} ms", first < 2000)
    return size, first


def look(page, checks, width, scheme):
    """What holds for every size and theme."""
    where = f"{width} px, {scheme}"
    page.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    page.run("check.frames()")
    for poor in page.run(CONTRAST):
        checks.true(f"{where}: contrast {poor}", False)
    overflow = page.run("document.scrollingElement.scrollWidth - innerWidth")
    checks.true(f"{where}: the page is {overflow} px too wide", overflow <= 0)
    page.run("document.querySelectorAll('details').forEach(d => { d.open = false })")
    repeated = page.run("(() => { const ids = [...document.querySelectorAll('[id]')].map(n => n.id);"
                        " return ids.filter((id, i) => ids.indexOf(id) !== i) })()")
    checks.equal(f"{where}: ids that are there twice", repeated, [])
    nameless = page.run("[...document.querySelectorAll('input, select, textarea, button')].filter(x => !(x.labels?.length || x.ariaLabel || x.textContent.trim())).map(x => x.outerHTML)")
    checks.equal(f"{where}: controls without a name", nameless, [])
    for complaint in page.complaints():
        checks.true(f"{where}: {complaint}", False)


def check(browser, url, attn, shots):
    checks, page = Checks(), Page(browser, url)
    for number, (width, scheme) in enumerate(SIZES):
        page.open(width, scheme)
        if number == 0:
            size, first = check_weight(page, checks)
            look(page, checks, width, scheme)
            check_order(page, checks)
            check_penalties(page, checks, attn)
            check_rotation(page, checks)
            check_speeds(page, checks, attn)
            check_stretch(page, checks, attn)
            seconds = check_score(page, checks, attn)
            check_generate(page, checks, attn)
            check_config(page, checks, attn)
            check_keyboard(page, checks)
        elif shots:
            check_score(page, checks, attn)
            check_config(page, checks, attn)
        look(page, checks, width, scheme)
        if shots:
            page.run("scrollTo(0, 0)")
            for section in page.run("[...document.querySelectorAll('header, section')].map(s => s.id || 'header')"):
                shot(page, section, shots / f"{section}-{width}-{scheme}.png")
    return checks, size, first, seconds


def shot(page, section, path):
    """A picture of one section."""
    where = "document.querySelector('header')" if section == "header" else f"document.getElementById({json.dumps(section)})"
    x, y, width, height = page.run(f"(r => [0, r.top + scrollY, innerWidth, r.height])({where}.getBoundingClientRect())")
    clip = {"x": x, "y": y, "width": width, "height": min(height, 6000), "scale": 1}
    image = page.browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(image["data"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attn")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--shots", type=Path)
    args = parser.parse_args()
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    where = ["--dir", str(args.dir)] if args.dir else []
    server = subprocess.Popen([args.attn, "playground", "--no-open", *where], stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        if not url:
            sys.exit("attn playground did not start")
        browser = Browser()
        try:
            checks, size, first, seconds = check(browser, url, args.attn, args.shots)
        finally:
            browser.close()
    finally:
        server.terminate()
        server.wait(timeout=20)
    for problem in checks.problems:
        print(problem, file=sys.stderr)
    if checks.problems:
        sys.exit(1)
    print(f"the playground is fine: {checks.compared} comparisons; {size / 1e6:.1f} MB, first scene after {first:.0f} ms, "
          f"512 tokens scored in {seconds:.2f} s")


if __name__ == "__main__":
    main()
