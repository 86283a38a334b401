"""Tables and figures of the extrapolation study, from the cells that `attn compare` measured."""

import json
import math

# When a longer length counts as good as the trained one: its perplexity in the last quarter of a window is at most this many times
# that at the trained length, and at least this fraction of the share of keys found there is found.
USABLE_PERPLEXITY = 1.05
USABLE_SHARE = 0.85
# The two-sided 95 % quantile of Student's t by degrees of freedom.
STUDENT = [math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26]
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#7f7f7f", "#17becf", "#e377c2", "#8c564b", "#bcbd22", "#111111"]


def cells(result, name, seed):
    """The cells of one comparison: under the study's name if there is one mode, otherwise under each mode's name."""
    several = len(result["settings"]["modes"]) > 1
    totals = {(t["mode"], t["context"]): t for t in result.get("retrieval", {}).get("totals", [])}
    found = []
    for cell in result["cells"]:
        if several and cell["mode"] == "none":
            continue  # measured under the encoding's own name
        total = totals.get((cell["mode"], cell["context"]), {})  # a context too short for the task has none
        found.append({
            "name": f"rope, {cell['mode']}" if several else name, "seed": seed, "context": cell["context"],
            "nll": cell["nll"], "windows": cell["windows"], "stderr": cell["stderr_windows"] / cell["perplexity"],
            "last_quarter_nll": math.log(cell["last_quarter_perplexity"]),
            "found": total.get("share"), "trials": total.get("trials"),
        })
    return found


def mean(values):
    return sum(values) / len(values)


def spread(values):
    """Half of the 95 % interval of a mean over seeds."""
    n, middle = len(values), mean(values)
    error = math.sqrt(sum((v - middle) ** 2 for v in values) / (n - 1) / n)
    return STUDENT[min(n - 1, len(STUDENT) - 1)] * error


class Rows:
    """Means over seeds by name and context."""

    def __init__(self, study):
        self.contexts = study["settings"]["contexts"]
        self.trained = study["settings"]["context"]
        self.seeds = study["settings"]["seeds"]
        self.by = {}
        for cell in study["cells"]:
            self.by.setdefault((cell["name"], cell["context"]), []).append(cell)
        self.names = list(dict.fromkeys(cell["name"] for cell in study["cells"]))

    def encodings(self):
        return [name for name in self.names if "," not in name]

    def rotary(self):
        return ["rope", *(name for name in self.names if "," in name)]

    def values(self, name, context, key):
        return [cell[key] for cell in self.by.get((name, context), []) if cell[key] is not None]

    def perplexity(self, name, context):
        """The perplexity, and by how many nats it is uncertain: over seeds, or over the windows of one."""
        nll = self.values(name, context, "nll")
        if not nll:
            return None
        half = spread(nll) if len(nll) > 1 else 1.96 * self.values(name, context, "stderr")[0]
        return math.exp(mean(nll)), half

    def share(self, name, context):
        found = self.values(name, context, "found")
        return mean(found) if found else None

    def usable(self, name, good):
        """The longest context up to which `good` holds at every one."""
        longest = None
        for context in [n for n in self.contexts if n >= self.trained]:
            if not self.by.get((name, context)) or not good(context):
                break
            longest = context
        return longest

    def usable_perplexity(self, name):
        def nll(context):
            return mean(self.values(name, context, "last_quarter_nll"))
        reference = name if self.by.get((name, self.trained)) else "rope"
        base = mean(self.values(reference, self.trained, "last_quarter_nll"))
        return self.usable(name, lambda context: nll(context) <= base + math.log(USABLE_PERPLEXITY))

    def usable_share(self, name):
        reference = name if self.by.get((name, self.trained)) else "rope"
        base = self.share(reference, self.trained)
        if base is None or base < 0.5:
            return None
        return self.usable(name, lambda context: (self.share(name, context) or 0.0) >= USABLE_SHARE * base)


def table(head, rows):
    lines = ["| " + " | ".join(map(str, head)) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def perplexities(rows, names):
    def text(name, context):
        found = rows.perplexity(name, context)
        if found is None:
            return "ends" if name == "learned" else ""
        value, half = found
        return f"{value:.1f} ±{value * half:.1f}" if value < 1000 else f"{value:.0f}"
    return table(["perplexity", *rows.contexts], [[name, *(text(name, n) for n in rows.contexts)] for name in names])


def shares(rows, names):
    def text(name, context):
        share = rows.share(name, context)
        return "" if share is None else f"{100 * share:.0f} %"
    return table(["keys found", *rows.contexts], [[name, *(text(name, n) for n in rows.contexts)] for name in names])


def textbook(rows):
    longest = rows.contexts[-1]

    def text(usable):
        return "none" if usable is None else f"{usable} or more" if usable == longest else str(usable)
    return table(["method", "trained length", "usable length by perplexity", "by retrieval"],
                 [[name, str(rows.trained), text(rows.usable_perplexity(name)), text(rows.usable_share(name))]
                  for name in rows.names])


def markdown(study):
    rows, s = Rows(study), study["settings"]
    seeds = f"seeds {', '.join(map(str, rows.seeds))}" if len(rows.seeds) > 1 else f"seed {rows.seeds[0]}"
    over = "seeds (Student's t)" if len(rows.seeds) > 1 else "windows"
    return "\n".join([
        f"{s['steps']} steps of {s['batch']} rows of {s['context']} tokens, {seeds}. Perplexity of {s['eval_tokens']} tokens of the "
        f"held-out novel; ± is half of the 95 % interval over {over}. Keys: {4 * s['trials']} per seed and context.", "",
        *perplexities(rows, rows.encodings()), *perplexities(rows, rows.rotary()),
        *shares(rows, rows.encodings()), *shares(rows, rows.rotary()),
        f"Usable: up to every length at which the last quarter of a window has at most {USABLE_PERPLEXITY} times the perplexity of "
        f"the trained length, and {USABLE_SHARE:.0%} of the keys found there are. \"none\": not even at the trained length, or the task "
        "was not learned.", "", *textbook(rows),
    ])


def chart(lines, label, ticks, x_label, x_scale=math.log, y_scale=float):
    """An SVG of lines {name: [(x, y)]}, with marks of y at `ticks`."""
    width, height, left, right, top, bottom = 760, 420, 60, 190, 24, 46
    points = [point for line in lines.values() for point in line]
    xs, ys = [x_scale(p[0]) for p in points], [y_scale(v) for v in (*(p[1] for p in points), *ticks)]
    x = lambda v: left + (width - left - right) * (x_scale(v) - min(xs)) / ((max(xs) - min(xs)) or 1)
    y = lambda v: top + (height - top - bottom) * (max(ys) - y_scale(v)) / ((max(ys) - min(ys)) or 1)
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" role="img" '
           f'aria-label="{label} by {x_label}">', f'<rect width="{width}" height="{height}" fill="white"/>']
    marks = sorted({p[0] for p in points})
    for mark in marks if len(marks) < 10 else marks[len(marks) // 5 - 1 :: len(marks) // 5]:
        svg.append(f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top}" y2="{height - bottom}" stroke="#ddd"/>'
                   f'<text x="{x(mark):.1f}" y="{height - bottom + 18}" text-anchor="middle">{mark}</text>')
    for tick in ticks:
        svg.append(f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    svg.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">{x_label}</text><text x="{left}" y="15">{label}</text>')
    for i, (name, line) in enumerate(lines.items()):
        colour, at = COLOURS[i % len(COLOURS)], top + 10 + 18 * i
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        svg += [f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>',
                f'<line x1="{width - right + 14}" x2="{width - right + 38}" y1="{at}" y2="{at}" stroke="{colour}" stroke-width="2"/>'
                f'<text x="{width - right + 44}" y="{at + 4}">{name}</text>']
        if len(line) < 10:
            svg += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>' for a, b in line]
    return "\n".join([*svg, "</svg>", ""])


def ticks(values):
    """1, 2 and 5 times powers of ten between the values."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [t for power in powers for m in (1, 2, 5) if low <= (t := m * 10.0**power) <= high]


def write(out, study):
    rows = Rows(study)
    by_length = f"tokens read (trained at {rows.trained})"
    encodings = {name: [(n, rows.perplexity(name, n)[0]) for n in rows.contexts if rows.perplexity(name, n)] for name in rows.encodings()}
    found = {name: [(n, 100 * rows.share(name, n)) for n in rows.contexts if rows.share(name, n) is not None] for name in rows.encodings()}
    first = next(iter(study["held_out_loss"].values()))
    values = [y for line in encodings.values() for _, y in line]
    losses = [y for line in first.values() for _, y in line]
    half = [i / 2 for i in range(math.ceil(2 * min(losses)), math.floor(2 * max(losses)) + 1)]
    for name, text in {
        "study.json": json.dumps(study, indent=1), "study.md": markdown(study),
        "extrapolation.svg": chart(encodings, "perplexity", ticks(values), by_length, y_scale=math.log),
        "retrieval.svg": chart(found, "keys found, %", [0, 25, 50, 75, 100], by_length),
        "loss.svg": chart(first, "held-out loss, nats", half, "step", x_scale=float),
    }.items():
        (out / name).write_text(text, encoding="utf-8")
