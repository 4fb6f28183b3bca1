"""How fluid the page's graph is: milliseconds between frames in headless Chromium, of a made-up result.

    python benchmarks/graph_page.py                        # 400 queries, about 40,000 edges
    python benchmarks/graph_page.py --num_queries 40 --num_neighbors 50

Prints the size of the page, the seconds until it is loaded and until all edges are drawn, and the frames while edges
are drawn, while the pointer crosses 200 nodes, and after a sign is switched off.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np


TESTS = Path(__file__).parent.parent / "tests"
sys.path.append(str(TESTS / "helpers"))

from browser import Browser  # noqa: E402
from synthetic import synthetic_result  # noqa: E402


RECORD = """
window.frames_ = []; window.last_ = performance.now();
(function look() { requestAnimationFrame(now => { frames_.push(now - last_); last_ = now; look(); }); })(); null
"""
DRAWN = """
parseInt(document.querySelector(".shown").value.replaceAll(",", ""))
    === parseInt(document.querySelector(".graph").dataset.drawn)
"""


def main(num_queries: int, num_neighbors: int) -> None:
    sizes = {f"slice {i}": num_queries // 4 for i in range(4)}
    result = synthetic_result(sizes, num_trains=40 * num_queries, k=num_neighbors)
    browser = Browser()
    try:
        with tempfile.TemporaryDirectory() as folder:
            page = result.to_html(Path(folder) / "report.html", slice_column="group")
            print(f"{len(result.influences):,} edges, {page.stat().st_size / 1e6:.1f} MB")
            measure(browser, page)
    finally:
        browser.close()


def measure(browser: Browser, page: Path) -> None:
    browser.open(page, height=1400)
    print(f"loaded after {browser.value('performance.now()') / 1000:.2f} s")
    browser.value(RECORD)
    start = browser.value("openTab('graph'); performance.now()")
    browser.wait(DRAWN)
    print(f"all edges drawn after {(browser.value('performance.now()') - start) / 1000:.2f} s")
    report(browser, "while they are drawn")
    box = json.loads(browser.value("JSON.stringify(document.querySelector('.board').getBoundingClientRect())"))
    for i in range(200):
        angle, far = 2 * math.pi * i / 200, 0.44 * box["width"] * (1 if i % 2 else 0.7)
        middle = box["left"] + box["width"] / 2, box["top"] + box["width"] / 2
        browser.point(middle[0] + far * math.sin(angle), middle[1] - far * math.cos(angle))
    report(browser, "pointing at nodes")
    browser.value("document.querySelector('[data-sign=\"1\"]').click()")
    browser.wait(DRAWN)
    report(browser, "after a switch")


def report(browser: Browser, what: str) -> None:
    """Prints what was recorded since the last report."""
    frames = np.array(browser.value("frames_.splice(0)"))
    middle, high = np.quantile(frames, [0.5, 0.95])
    print(f"{what}: {len(frames)} frames, median {middle:.1f} ms, 95 % {high:.1f} ms, longest {frames.max():.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_queries", type=int, default=400)
    parser.add_argument("--num_neighbors", type=int, default=100)
    main(**vars(parser.parse_args()))
