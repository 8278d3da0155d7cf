"""The report of a large study: how long it takes to write, to open and to zoom, with hardware and versions.

    python tests/benchmarks/search/bench_report.py [--points 50000] [--repeats 3] [--seed 0]

A study is told by hand in a real journal (trials with curves of ten points at two rungs and at the end, some
stopped) and its page is written as `routefront report` writes it; no diagnostics and no t-SNE, which depend on
the methods and not on the size. The page is then opened in headless Chromium: "ready" is the browser's own
clock from the start of the navigation until everything in view is drawn, "zoom" and "walk" until the
frontier is drawn again after its window was changed and after a point was chosen. Prints a table.
"""

from __future__ import annotations

import argparse
import http.server
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import plotly

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from bench_frontier import machine

from search.journal import database as journals
from search.journal.database import Journal
from search.journal.tables import EVENTS
from search.report.build import read_report
from search.report.page import page_html
from search.study import Study
from tests.support.kept_study import keep
from tests.support.story import Story

_OPENED = """<!doctype html><meta charset="utf-8"><body style="margin:0"><script>
const frame = document.createElement("iframe");
frame.style = "width:1280px;height:900px;border:0"; frame.src = "/page.html";
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const count = (page) => Number(page.document.getElementById("frontier").dataset.drawn);
const drawn = async (page, before) => { while (count(page) === before) await wait(2); };
(async () => {
  document.body.append(frame);
  for (;;) { await wait(10); try { if (frame.contentDocument.documentElement.dataset.ready) break; } catch {} }
  const page = frame.contentWindow, ready = page.performance.now();
  const data = JSON.parse(page.document.getElementById("data").textContent);
  const times = { ready, zoom: [], walk: [] };
  const [[left, right], [bottom, top]] = data.window;
  for (const share of [0.7, 0.4, 0.2, 1]) {
    await wait(300);
    const started = page.performance.now(), before = count(page);
    page.Plotly.relayout("frontier", { "xaxis.range[0]": left, "xaxis.range[1]": left + share * (right - left),
      "yaxis.range[0]": top - share * (top - bottom), "yaxis.range[1]": top });
    await drawn(page, before);
    times.zoom.push(page.performance.now() - started);
  }
  const box = page.document.getElementById("frontier-box");
  for (let i = 0; i < 5; i++) {
    await wait(300);
    const started = page.performance.now(), before = count(page);
    box.dispatchEvent(new page.KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    await drawn(page, before);
    times.walk.push(page.performance.now() - started);
  }
  times.dots = page.document.querySelectorAll("#frontier .point").length;
  await fetch("/done", { method: "POST", body: JSON.stringify(times) });
})().catch((error) => fetch("/done", { method: "POST", body: JSON.stringify({ error: String(error) }) }));
</script>"""


def told(points: int, seed: int, root: Path) -> Study:
    """A study of so many operating points in a folder: 30 a trial that was trained to the end."""
    random = np.random.default_rng(seed)
    story = Story(("static", "skipnet", "codinet", "imta"))
    methods, made, number = ("static", "skipnet", "codinet", "imta"), 0, 0
    while made < points:
        width, lr = float(random.choice([0.25, 0.5, 1.0])), float(10 ** random.uniform(-2.5, -0.5))
        method = methods[number % 4]
        more = {"network": f"resnet-{8 + 6 * (number % 3)}", "lr": lr, "width": width}
        trial = story.ask(number, method, weight_decay=float(10 ** random.uniform(-5, -3)), **more)
        for epoch in (1, 3, 9):
            reach = 0.95 - 0.3 / epoch - 0.05 * abs(np.log10(lr) + 1.3) + 0.02 * random.normal()
            size = 1 if method == "static" else 14
            costs = np.sort(10 ** random.uniform(6.3, 7.3, size)) * width
            curve = [(float(np.clip(reach - 0.02 * (7.3 - np.log10(m)), 0.1, 1)), float(m)) for m in costs]
            curve = [(round(a * 5000) / 5000, m) for a, m in curve]
            story.report(trial, epoch, curve)
            made += size
            if epoch < 9 and random.random() < 0.4:
                story.decide(
                    trial, epoch, "stop", f"its curve stands at {random.integers(5, 40)} of 60 at rung {epoch}"
                )
                break
        else:
            story.decide(trial, 9, "finish", "trained in full")
        number += 1
    story.add("ended", {"why": "finished"})
    events, story.events = story.events, story.events[:1]
    study = keep(story, root, "large")
    _append_all(study, events[1:])
    return study


def _append_all(study: Study, events: list[Any]) -> None:
    """All events in one transaction: appending one by one is what a driver has hours for."""
    journal = Journal(journals.sqlite_address(study.folder.control), study.spec.name)
    rows = [
        {"study": study.spec.name, "seq": e.seq, "time": e.time, "fence": 1, "kind": e.kind, "trial": e.trial,
         "payload": json.dumps(e.payload, separators=(",", ":"))}
        for e in events
    ]  # fmt: skip
    with journal._engine.begin() as connection:
        connection.execute(EVENTS.insert(), rows)
    journal.close()


def opened(page: str, browser: str) -> dict[str, Any]:
    """What the browser measured."""
    found: dict[str, Any] = {}
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (page if self.path == "/page.html" else _OPENED).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            found.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            over.set()

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # its helpers end a little later
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--remote-debugging-port=0", f"http://127.0.0.1:{server.server_address[1]}/"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if not over.wait(90):
            found["error"] = "no answer in 120 s"
        process.terminate()
        process.wait(timeout=30)
    server.shutdown()
    return found


def main() -> None:
    """Build, write, open."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    print(f"command: python tests/benchmarks/search/bench_report.py {' '.join(sys.argv[1:])}".strip())
    print(f"machine: {machine()}")
    print(f"versions: Python {platform.python_version()}, numpy {np.__version__}, plotly {plotly.__version__}")
    with tempfile.TemporaryDirectory() as root:
        study = told(asked.points, asked.seed, Path(root))
        walls, used, page = [], [], ""
        for _ in range(asked.repeats):
            started, processor = time.perf_counter(), time.process_time()
            report = read_report(study, paths=False)
            page = page_html(report)
            (Path(root) / "report.html").write_text(page)
            walls.append(time.perf_counter() - started)
            used.append(time.process_time() - processor)
        print(f"\n{len(report.points):,} points of {len(report.trials):,} trials, {len(report.front)} on the front")
        print("\n| what | median |\n|---|---|")
        print(f"| write, s (processor) | {statistics.median(walls):.2f} ({statistics.median(used):.2f}) |")
        print(f"| size of the page, MB | {len(page.encode()) / 1e6:.1f} |")
        if not browser:
            print("| open | no Chromium here |")
            return
        found = [opened(page, browser) for _ in range(asked.repeats)]
    if any("error" in each for each in found):
        print(f"| open | {found} |")
        sys.exit(1)
    print(f"| ready, ms | {statistics.median(each['ready'] for each in found):.0f} |")
    for name in ("zoom", "walk"):
        times = [value for each in found for value in each[name]]
        print(f"| {name}, ms (longest) | {statistics.median(times):.0f} ({max(times):.0f}) |")
    print(f"| dots in the frontier | {found[-1]['dots']:,} |")


if __name__ == "__main__":
    main()
