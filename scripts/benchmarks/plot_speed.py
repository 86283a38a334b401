#!/usr/bin/env python3
"""Draws what `bench_peers.py --plot --json` measured: time against length, one line per program, both axes logarithmic.

    python scripts/benchmarks/plot_speed.py RESULTS.json CHART.svg
"""
import json
import math
import sys
from html import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 72, 724, 88, 392
# Okabe and Ito's colours, one per program: they can be told apart with any colour vision, on light and on dark.
COLORS = {"attn": "#0072b2", "torch": "#d55e00"}
STYLE = """
  svg { background: #ffffff; }
  text { font: 13px system-ui, sans-serif; fill: #222222; }
  .title { font-size: 16px; font-weight: 600; }
  .grid { stroke: #dddddd; }
  .line { fill: none; stroke-width: 2.2; }
  @media (prefers-color-scheme: dark) {
    svg { background: #16181d; }
    text { fill: #e6e6e6; }
    .grid { stroke: #363a43; }
  }
"""


def scale(values, low, high):
    """From a value to the page, logarithmically."""
    first, last = math.log(min(values)), math.log(max(values))
    return lambda value: low + (math.log(value) - first) / ((last - first) or 1) * (high - low)


def duration(ms):
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"


def svg(lines, title="One attention call, f32, 9 query heads on 3 key heads, causal"):
    """The chart of lines `{"name": .., "points": [[length, ms], ..]}` as an SVG document."""
    lines = [line for line in lines if line["points"]]
    points = [point for line in lines for point in line["points"]]
    x = scale([length for length, _ in points], LEFT + 16, RIGHT - 16)
    decades = range(math.floor(math.log10(min(ms for _, ms in points))), math.ceil(math.log10(max(ms for _, ms in points))) + 1)
    ticks = [10.0**n for n in decades]
    y = scale(ticks, BOTTOM, TOP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="28">{escape(title)}</text>',
    ]
    for tick in ticks:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{duration(tick)}</text>')
    for length in sorted({length for length, _ in points}):
        out.append(f'<text x="{x(length):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{length}</text>')
    out.append(f'<text x="{(LEFT + RIGHT) / 2:.0f}" y="{BOTTOM + 40}" text-anchor="middle">tokens</text>')
    for i, line in enumerate(lines):
        color = COLORS.get(line["name"].split()[0].rstrip(","), "#666666")
        dash = "7 4" if "," in line["name"] else "none"
        path = " ".join(f"{'L' if n else 'M'}{x(length):.1f} {y(ms):.1f}" for n, (length, ms) in enumerate(line["points"]))
        style = f'stroke="{color}" stroke-dasharray="{dash}"'
        out.append(f'<path class="line" {style} d="{path}"/>')
        for length, ms in line["points"]:
            text = escape(f"{line['name']}, {length} tokens: {ms:.3g} ms")
            out.append(f'<circle cx="{x(length):.1f}" cy="{y(ms):.1f}" r="3.5" fill="{color}"><title>{text}</title></circle>')
        at_x, at_y = LEFT + (i % 2) * 280, 50 + (i // 2) * 20
        out.append(f'<path class="line" {style} d="M{at_x} {at_y} h28"/>')
        out.append(f'<text x="{at_x + 36}" y="{at_y + 4}">{escape(line["name"])}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        document = svg(json.load(file)["lengths"])
    with open(sys.argv[2], "w") as file:
        file.write(document)
