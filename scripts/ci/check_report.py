#!/usr/bin/env python3
"""Opens a report (attn compare, attn retrieval or attn explain with --html) in headless Chromium and checks what a person would look for:

    scripts/ci/check_report.py report.html [--json report.json] [--shots FOLDER]

- no error on the console, nothing loaded but the file itself, in light and dark, at 1280, 800 and 380 px;
- every chart is drawn, reacts to the keyboard, and hides a line when its box is cleared;
- tables sort; every figure in the tables of a comparison and of retrieval equals that of the JSON (to 1e-15: reading JSON may change the
  last digit);
- text has the contrast that WCAG 2.1 AA requires, the page never scrolls sideways, ids are unique;
- captions are never cut off, the column of names leaves room for figures, and at 1280 px the tables that are not folded away
  show all of their columns.

--json: the output of `--json` for the same comparison, which has to equal the data inside the page.
--shots: writes screenshots to this folder.
Needs Python 3.9 and Chromium (CHROMIUM names the program), and no packages: it talks to Chromium through a pipe.
"""

import argparse
import base64
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMEOUT = 60
WIDTHS = [1280, 800, 380]


def find_chromium():
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "chrome"]
    for name in filter(None, names):
        if found := shutil.which(name):
            return found
    return None


class Browser:
    """A headless Chromium, driven by the DevTools protocol over file descriptors 3 and 4. Ends the script if Chromium is not installed."""

    def __init__(self):
        program = find_chromium() or sys.exit("there is no Chromium here; set CHROMIUM to its path")
        self.profile = tempfile.TemporaryDirectory()
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()

        def plumb():
            # By way of high numbers, because either end may already be descriptor 3 or 4.
            read, write = os.dup(to_read), os.dup(to_write)
            high_read, high_write = os.dup2(read, 103), os.dup2(write, 104)
            os.dup2(high_read, 3, inheritable=True)
            os.dup2(high_write, 4, inheritable=True)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
                 "--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb",
                 f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen([program, *flags], preexec_fn=plumb, close_fds=False,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.buffer, self.number, self.events = b"", 0, []
        self.session = None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=20)
        for _ in range(20):
            try:
                self.profile.cleanup()
                return
            except OSError:  # its children are still writing there
                time.sleep(0.2)

    def message(self):
        while b"\0" not in self.buffer:
            part = os.read(self.read, 1 << 16)
            if not part:
                raise RuntimeError("Chromium went away")
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, **params):
        self.number += 1
        request = {"id": self.number, "method": method, "params": params}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.write, json.dumps(request).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def run(self, script):
        """The value of a JavaScript expression, promises awaited."""
        # The page keeps a reference to the promise: one that nothing refers to may be collected before it is resolved.
        held = f"window.heldByTheCheck = Promise.resolve({script.strip().rstrip(';')})"
        answer = self.call("Runtime.evaluate", expression=held, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def open(self, url, width, height, scheme):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=url)
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            try:
                if self.run("document.readyState === 'complete' && document.documentElement.dataset.ready"):
                    return
            except RuntimeError:
                pass  # between two pages
            time.sleep(0.05)
        raise RuntimeError("the page's script did not finish")

    def complaints(self, url):
        for event in self.events:
            params = event.get("params", {})
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    details = params["exceptionDetails"]
                    yield details.get("exception", {}).get("description", details["text"])
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    yield "console: " + " ".join(str(a.get("value", a)) for a in params["args"])
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    yield "log: " + params["entry"]["text"]
                case "Network.requestWillBeSent" if params["request"]["url"] != url:
                    yield "loads " + params["request"]["url"][:80]

    def shot(self, path):
        size = self.run("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 12000), "scale": 1}
        image = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))


# Text whose contrast with its background is below WCAG 2.1 AA: 4.5, or 3 for large letters.
CONTRAST = r"""
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, base) => [0, 1, 2].map(i => top[i] * top[3] + base[i] * (1 - top[3]));
  const behind = node => {
    const layers = [];
    for (let n = node; n; n = n.parentElement) layers.push(rgba(getComputedStyle(n).backgroundColor));
    return layers.reverse().reduce((base, layer) => over(layer, base), [255, 255, 255]);
  };
  const luminance = c => c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const poor = [];
  for (const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walker.nextNode();) {
    const node = walker.currentNode, parent = node.parentElement, style = getComputedStyle(parent);
    if (!node.data.trim() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(parent.tagName)) continue;
    if (parent.closest(".hidden") || style.visibility === "hidden" || !parent.getClientRects().length) continue;
    const base = behind(parent), front = over(rgba(style.color), base);
    const [a, b] = [luminance(base), luminance(front)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) poor.push(`${ratio.toFixed(2)} "${node.data.trim().slice(0, 40)}"`);
  }
  return poor;
})()
"""

# Per chart: its size, how many colours its canvas shows, and the effect of arrow keys and of clearing a box.
CHARTS = r"""
(async () => {
  const found = [];
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const box = figure.querySelector(".chart"), live = figure.querySelector("[aria-live]");
    const ink = () => {
      const canvas = figure.querySelector("canvas");
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const seen = new Set();
      for (let i = 0; i < data.length; i += 4) if (data[i + 3]) seen.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
      return seen.size;
    };
    await new Promise(requestAnimationFrame);
    const facts = { id: figure.dataset.chart, width: figure.querySelector("canvas").clientWidth, box: box.clientWidth, ink: ink() };
    box.focus();
    facts.focus = document.activeElement === box;
    box.dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
    box.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
    await new Promise(requestAnimationFrame);
    facts.spoken = live.textContent;
    facts.tip = Boolean(figure.querySelector(".tip"));
    box.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    const keys = figure.querySelectorAll(".keys input");
    facts.keys = keys.length;
    for (const key of keys) { key.click(); }
    await new Promise(requestAnimationFrame);
    facts.emptied = ink();
    for (const key of keys) { key.click(); }
    facts.views = figure.querySelectorAll("option").length;
    const select = figure.querySelector("select");
    for (let i = 0; select && i < facts.views; i++) {
      select.selectedIndex = i;
      select.dispatchEvent(new Event("change"));
    }
    if (select) { select.selectedIndex = 0; select.dispatchEvent(new Event("change")); }
    facts.name = box.getAttribute("aria-label");
    found.push(facts);
  }
  return found;
})()
"""

# Tables wider than their container although the window is wide, captions wider than it, and names that leave no room for figures.
CUT = r"""
(() => {
  const cut = [];
  for (const box of document.querySelectorAll(".scroll")) {
    if (!box.getClientRects().length) continue;
    const table = box.querySelector("table"), edge = box.getBoundingClientRect().right;
    if (innerWidth >= 1280 && !box.closest("details") && box.scrollWidth > box.clientWidth + 1)
      cut.push(`table ${table.id} is ${box.scrollWidth - box.clientWidth} px wider than its place`);
    const caption = document.createRange();
    caption.selectNodeContents(table.caption);
    if (caption.getBoundingClientRect().right > edge + 1) cut.push(`the caption of table ${table.id} is cut off`);
    const name = table.tBodies[0].rows[0]?.cells[0].getBoundingClientRect().width;
    if (name > 0.5 * box.clientWidth) cut.push(`the names of table ${table.id} take ${Math.round(name)} px`);
  }
  return cut;
})()
"""

# Sorts every column of every table both ways and returns those that are not in order; leaves the last order.
SORT = r"""
(() => {
  const wrong = [];
  for (const table of document.querySelectorAll("table.sortable")) {
    const before = table.tBodies[0].rows.length;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return wrong.push(`${table.id}: column ${column} has no button`);
      for (const direction of ["ascending", "descending"]) {
        button.click();
        if (head.getAttribute("aria-sort") !== direction) wrong.push(`${table.id}: ${column} is not ${direction}`);
        const values = [...table.tBodies[0].rows].map(row => row.cells[column].dataset.value)
          .filter(value => value !== undefined).map(Number);
        const sign = direction === "ascending" ? 1 : -1;
        if (values.some((v, i) => i && sign * (v - values[i - 1]) < 0)) wrong.push(`${table.id}: ${column} ${direction}`);
      }
    });
    if (table.tBodies[0].rows.length !== before) wrong.push(`${table.id} lost rows`);
  }
  return wrong;
})()
"""

TABLES = r"""
Object.fromEntries([...document.querySelectorAll("table.sortable")].map(table => [table.id, {
  caption: table.caption.textContent,
  heads: [...table.tHead.rows[0].cells].map(cell => cell.textContent),
  rows: [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => ({
    tag: cell.tagName, scope: cell.scope, value: cell.dataset.value,
    text: [...cell.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join(""),
  }))),
}]))
"""


def rounded(value, text):
    """Whether `text` is `value` in fewer digits."""
    number = float(text.rstrip("%"))
    digits = len(text.split(".")[1].split("e")[0].rstrip("%")) if "." in text else 0
    if "e" in text:
        return math.isclose(number, value, rel_tol=0.06)
    return abs(number - value) <= 0.5000001 * 10 ** -digits


def same(a, b):
    return math.isclose(a, b, rel_tol=1e-15)


def alike(a, b):
    """Whether they are equal except for the last digit of numbers."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return same(a, b) if isinstance(a, float) and isinstance(b, (int, float)) else a == b


def check_comparison(document, tables):
    """Every figure of the tables against the document's."""
    cells = {(cell["mode"], cell["context"]): cell for cell in document["cells"]}
    contexts = list(dict.fromkeys(cell["context"] for cell in document["cells"]))
    compared = 0

    def figures(table, of):
        nonlocal compared
        for row in tables[table]["rows"]:
            # The columns before them show up to which length a mode is usable.
            for context, shown in zip(contexts, row[-len(contexts):]):
                expected = of(cells[row[0]["text"], context])
                if expected is None:
                    assert shown.get("value") is None, (table, row[0]["text"], context, shown)
                    continue
                assert same(float(shown["value"]), expected), (table, row[0]["text"], context, shown, expected)
                assert rounded(expected, shown["text"]), (table, shown, expected)
                compared += 1

    figures("perplexity", lambda cell: cell["perplexity"])
    figures("last-quarter", lambda cell: cell["last_quarter_perplexity"])
    for row in tables["against-best"]["rows"]:
        for context, shown in zip(contexts, row[1:]):
            versus = cells[row[0]["text"], context].get("versus_best")
            if versus and shown["text"] != "the same as the best":
                assert same(float(shown["value"]), versus["nll"]), (row[0]["text"], context)
                assert rounded(math.expm1(versus["nll"]) * 100, shown["text"].lstrip("+")), shown
                compared += 1
    by_cell = {(row[0]["text"], int(row[1]["value"])): row for row in tables["cells"]["rows"]}
    assert by_cell.keys() == cells.keys()
    for key, row in by_cell.items():
        assert same(float(row[3]["value"]), cells[key]["perplexity"]) and int(row[6]["value"]) == cells[key]["tokens"], key
        compared += 2
    return compared


def check_retrieval(retrieval, tables):
    """Every share of the tables against the counts of the document."""
    totals = {(t["task"], t["mode"], t["context"]): t for t in retrieval["totals"]}
    cells = {(c["task"], c["mode"], c["context"], c["depth"]): c for c in retrieval["cells"]}
    contexts, compared = retrieval["contexts"], 0

    def share(shown, expected):
        nonlocal compared
        if expected is None:
            assert shown.get("value") is None, shown
            return
        found = expected["found"] / expected["wanted"]
        assert math.isclose(float(shown["value"]), found, rel_tol=1e-12, abs_tol=1e-12), (shown, expected)
        assert rounded(found * 100, shown["text"]), (shown, expected)
        compared += 1

    for index, task in enumerate(task["name"] for task in retrieval["tasks"]):
        for row in tables[f"found-{index}"]["rows"]:
            for context, shown in zip(contexts, row[1:]):
                share(shown, totals.get((task, row[0]["text"], context)))
        for row in tables[f"answers-{index}"]["rows"]:
            for context, shown in zip(contexts, row[1:]):
                if total := totals.get((task, row[0]["text"], context)):
                    assert same(float(shown["value"]), total["answer_nll"]), (shown, total)
                    compared += 1
        for number, mode in enumerate(retrieval["modes"]):
            for row in tables.get(f"map-{index}-{number}", {"rows": []})["rows"]:
                for context, shown in zip(contexts, row[1:]):
                    share(shown, cells.get((task, mode, context, float(row[0]["value"]))))
    return compared


def check(browser, url, document, shots):
    problems = []
    for width, scheme in [(width, scheme) for width in WIDTHS for scheme in ("light", "dark")]:
        where = f"{width} px, {scheme}"
        browser.open(url, width, 900, scheme)
        problems += [f"{where}: {cut}" for cut in browser.run(CUT)]
        browser.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
        browser.run("new Promise(done => setTimeout(done, 150))")
        problems += [f"{where}: contrast {poor}" for poor in browser.run(CONTRAST)]
        overflow = browser.run("document.scrollingElement.scrollWidth - innerWidth")
        if overflow > 0:
            problems.append(f"{where}: the page is {overflow} px too wide")
        for chart in browser.run(CHARTS):
            fine = (chart["ink"] > 3 and chart["width"] > 150 and chart["width"] <= chart["box"] + 1 and chart["focus"]
                    and chart["spoken"] and chart["tip"] and chart["keys"] and chart["emptied"] < chart["ink"] and chart["name"])
            if not fine:
                problems.append(f"{where}: chart {chart}")
        problems += [f"{where}: sorting {wrong}" for wrong in browser.run(SORT)]
        problems += [f"{where}: {complaint}" for complaint in browser.complaints(url)]
        if shots:
            browser.open(url, width, 900, scheme)
            browser.run("new Promise(done => setTimeout(done, 150))")
            browser.shot(shots / f"{Path(url).stem}-{width}-{scheme}.png")
    repeated = browser.run("(() => { const ids = [...document.querySelectorAll('[id]')].map(n => n.id);"
                           " return ids.filter((id, i) => ids.indexOf(id) !== i) })()")
    problems += [f"id {id} is there twice" for id in repeated]
    tables = browser.run(TABLES)
    for name, table in tables.items():
        for row in table["rows"]:
            if row[0]["tag"] != "TH" or row[0]["scope"] != "row" or len(row) != len(table["heads"]):
                problems.append(f"table {name}: row {row[0]} has no header or another width")
    inside = json.loads(browser.run("document.getElementById('data').textContent"))["document"]
    if document is not None and not alike(inside, document):
        differ = sorted(key for key in {*inside, *document} if not alike(inside.get(key), document.get(key)))
        problems.append(f"the page's data differ from the JSON in {', '.join(differ)}")
    compared = 0
    if "cells" in inside:
        compared = check_comparison(inside, tables)
        if compared < 2 * len(inside["cells"]):
            problems.append(f"only {compared} figures were compared")
    if retrieval := inside.get("retrieval"):
        shares = check_retrieval(retrieval, tables)
        if shares < len(retrieval["cells"]):
            problems.append(f"only {shares} shares were compared")
        compared += shares
    return problems, len(tables), compared


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shots", type=Path)
    args = parser.parse_args()
    document = json.loads(args.json.read_text()) if args.json else None
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    browser = Browser()
    try:
        url = args.page.resolve().as_uri()
        problems, tables, compared = check(browser, url, document, args.shots)
    finally:
        browser.close()
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"{args.page}: fine; {tables} tables, {compared} figures equal to the JSON")


if __name__ == "__main__":
    main()
