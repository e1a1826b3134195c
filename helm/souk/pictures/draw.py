#!/usr/bin/env python3
"""Draws one of the chart's dashboards from what a Prometheus has, without a Grafana: draw.py URL DASHBOARD.json SECONDS OUT.png

Wants matplotlib. Panels lie where the dashboard puts them; units, thresholds and legends are the dashboard's. The pictures beside it
show a load of 500 calls per second on two cores, scraped each second: after a quarter of it a console locks the checkpoints of one read
database for 14 seconds, later a replica of the command service is paused for 8.
"""
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

INK, FAINT, GRID, PAPER, PANEL = "#d8d9da", "#8e9197", "#2c2f36", "#111217", "#181b1f"
COLORS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#96d98d", "#ffa6b0", "#ca95e5", "#37872d"]
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "transparent": None}
ROW, COLUMN = 0.33, 0.62  # inches of a unit of Grafana's grid


def ask(url, path, **query):
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}") as reply:
        return json.load(reply)["data"]["result"]


def series(url, panel, start, end):
    """Name, times and values of every series of a panel."""
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "10s").replace("$namespace", ".*").replace("$job", ".*")
        for found in ask(url, "query_range", query=expression, start=start, end=end, step=1):
            name = re.sub(r"{{(\w+)}}", lambda label: found["metric"].get(label[1], ""), target.get("legendFormat", ""))
            points = [(float(at) - start, float(value)) for at, value in found["values"] if value not in ("NaN", "+Inf")]
            gaps = [(at + 1, math.nan) for (at, _), (then, _) in zip(points, points[1:]) if then > at + 2]
            if points:
                yield name, *zip(*sorted(points + gaps))


def shown(value, unit, _=None):
    """A number as Grafana shows it."""
    if unit == "percentunit":
        return f"{value * 100:.4g} %"
    if unit == "s":
        steps = ((60, 60, "min"), (1, 1, "s"), (1e-3, 1e-3, "ms"), (0, 1e-6, "µs"))
        least, scale, name = next(step for step in steps if abs(value) >= step[0])
        return "0 s" if value == 0 else f"{value / scale:.3g} {name}"
    end = {"reqps": " req/s", "eps": " events/s"}.get(unit, "")
    return (f"{value / 1000:.3g} k" if abs(value) >= 10_000 else f"{value:.4g}") + end


def stat(axes, panel, found):
    defaults = panel["fieldConfig"]["defaults"]
    axes.axis("off")
    color, text = FAINT, defaults.get("noValue", "–")
    if found:
        _, times, values = found[0]
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is None or values[-1] >= step["value"]:
                color = NAMED[step["color"]]
        text = shown(round(values[-1], defaults.get("decimals", 2) + 2), defaults["unit"])
        axes.fill_between(times, values, color=color, alpha=0.18, linewidth=0)
        axes.plot(times, values, color=color, linewidth=0.8, alpha=0.7)
        axes.set_ylim(0, max(max(value for value in values if value == value) * 3, 1e-9))
    axes.text(0.5, 0.55, text, transform=axes.transAxes, ha="center", va="center", fontsize=17, color=color, weight="bold")


def timeseries(axes, panel, found, length):
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    colors = [COLORS[index % len(COLORS)] for index in range(len(found))]
    if any(name == "OK" for name, *_ in found):
        found.sort(key=lambda one: one[0] != "OK")
    if "stacking" in custom:
        times = sorted({at for _, times, _ in found for at in times})
        lanes = [[0 if math.isnan(value) else value for value in (dict(zip(at, values)).get(time, 0) for time in times)]
                 for _, at, values in found]
        axes.stackplot(times, lanes, colors=colors, alpha=0.75, linewidth=0, labels=[name for name, *_ in found])
    else:
        for (name, times, values), color in zip(found, colors):
            axes.plot(times, values, color=color, linewidth=1.1, label=name)
            if "scaleDistribution" not in custom:
                axes.fill_between(times, values, color=color, alpha=0.07, linewidth=0)
    if "scaleDistribution" in custom:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        low, high = axes.get_ylim()
        axes.set_ylim(defaults.get("min", low), defaults.get("max", high if high > 0 else 1))
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is not None and step["value"] <= axes.get_ylim()[1]:
            axes.axhline(step["value"], color=NAMED[step["color"]], linestyle="--", linewidth=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, defaults["unit"])))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{int(at) // 60}:{int(at) % 60:02}"))
    axes.set_xlim(0, length)
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(colors=FAINT, labelsize=6.5, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if found:
        handles, names = axes.get_legend_handles_labels()
        most = sorted(range(len(found)), key=lambda index: -max(value for value in found[index][2] if value == value))
        columns = max(1, min(len(names), int(axes.get_position().width * 210) // (5 + max(len(name) for name in names))))
        handles, names = zip(*[(handles[index], names[index]) for index in sorted(most[: 3 * columns])])
        axes.legend(handles, names, loc="upper left", bbox_to_anchor=(-0.02, -0.1), ncol=columns, frameon=False, fontsize=6.3, labelcolor=INK,
                    handlelength=1, columnspacing=1, borderaxespad=0.2, labelspacing=0.25)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=FAINT, fontsize=8)


def main(url, file, seconds, out):
    with open(file, encoding="utf-8") as text:
        dashboard = json.load(text)
    end = time.time()
    start = end - seconds
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    width, height = 24 * COLUMN, rows * ROW + 0.5
    figure = plt.figure(figsize=(width, height), facecolor=PAPER)
    figure.text(0.012, 1 - 0.3 / height, dashboard["title"], color=INK, fontsize=12, weight="bold")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] * COLUMN, 0.5 + place["y"] * ROW
        box = (left / width, 1 - (top + place["h"] * ROW) / height, place["w"] * COLUMN / width, place["h"] * ROW / height)
        gap = 0.05
        figure.patches.append(plt.Rectangle((box[0] + gap / width, box[1] + gap / height), box[2] - 2 * gap / width, box[3] - 2 * gap / height,
                                            transform=figure.transFigure, facecolor=PANEL, edgecolor=GRID, linewidth=0.6, zorder=-1))
        figure.text(box[0] + 0.14 / width, box[1] + box[3] - 0.24 / height, panel["title"], color=INK, fontsize=8, weight="bold")
        found = list(series(url, panel, start, end))
        is_stat = panel["type"] == "stat"
        margins = (0.1, 0.1, 0.1, 0.3) if is_stat else (0.72, 0.2, 0.62, 0.36)  # left, right, bottom, top in inches
        axes = figure.add_axes((box[0] + margins[0] / width, box[1] + margins[2] / height,
                                box[2] - (margins[0] + margins[1]) / width, box[3] - (margins[2] + margins[3]) / height))
        axes.set_facecolor(PANEL)
        stat(axes, panel, found) if is_stat else timeseries(axes, panel, found, seconds)
    figure.savefig(out, dpi=100, facecolor=PAPER)
    Image.open(out).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
