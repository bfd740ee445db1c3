#!/usr/bin/env python3
"""Make the pictures of the README: the viewer in headless Chromium, and a map through attn.py.

    python docs/pictures.py SMOLLM2.gguf

It needs ./run, Chromium with chromedriver, and the packages of requirements-test.txt. No network:
the page has none."""
from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import attn  # noqa: E402

# A rhyme that says its lines twice, so that induction heads have something to copy
PROMPT = ("This is the dog that worried the cat that killed the rat that ate the malt that lay in "
          "the house that Jack built. This is the cow with the crumpled horn that tossed the dog "
          "that worried the cat that killed the rat that ate the malt that "
          "lay in the house that Jack built.")
INDUCTION = (18, 6)  # SmolLM2's best induction head, see examples/heads.md
SIZE = (1280, 800)
# Name, and the view as the page's address after the # names it; TOKEN stands for the position of
# the second " Jack"
VIEWS = [("viewer-overview.png", "view=overview&layer=18&head=6&sink=drop&theme=light"),
         ("viewer-text.png", "view=text&layer=18&head=6&token=TOKEN&theme=light"),
         ("viewer-heat.png", "view=heat&layer=18&head=6&token=TOKEN&theme=dark")]


def small(png: bytes, out: Path) -> None:
    """Write it with a palette of 256 colours, a third of the bytes.

    Maximum coverage keeps the rare, bright ones."""
    image = Image.open(BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, 4,
                                                             dither=Image.Dither.NONE)
    image.save(out, optimize=True)
    print(f"{out.name}: {out.stat().st_size:,} bytes")


def chromium() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--force-device-scale-factor=1", "--hide-scrollbars"):
        options.add_argument(flag)
    driver = shutil.which("chromedriver")
    browser = webdriver.Chrome(options=options,
                               service=webdriver.ChromeService(driver) if driver else None)
    # the size of the page, not of a window with bars around it
    size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return browser


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/pictures.py SMOLLM2.gguf")
    with tempfile.TemporaryDirectory() as tmp:
        page, dump = Path(tmp) / "page.html", Path(tmp) / "map.npz"
        subprocess.run([HERE.parent / "run", sys.argv[1], "-i", PROMPT, "-n", "0", "--dump-attn",
                        page], check=True)
        subprocess.run(
            [HERE.parent / "run", sys.argv[1], "-i", PROMPT, "-n", "0", "--dump-attn", dump,
             "--attn-layers", str(INDUCTION[0]), "--attn-heads", str(INDUCTION[1])], check=True)
        maps = attn.load(dump)
        token = [i for i, word in enumerate(maps.tokens) if word == " Jack"][1]
        browser = chromium()
        try:
            for name, view in VIEWS:
                browser.get("about:blank")  # a new hash alone would not load the page again
                browser.get(f"{page.as_uri()}#{view.replace('TOKEN', str(token))}")
                WebDriverWait(browser, 60).until(
                    lambda b: b.execute_script("return document.body.dataset.ready") == "1")
                # thumbnails are drawn a few at a time
                browser.execute_async_script("setTimeout(arguments[0], 800)")
                small(browser.get_screenshot_as_png(), HERE / name)
        finally:
            browser.quit()
        figure, png = Figure((8, 7), dpi=100, layout="constrained"), BytesIO()
        attn.heatmap(maps, *INDUCTION, figure.add_subplot())
        figure.savefig(png)
        small(png.getvalue(), HERE / "map.png")


if __name__ == "__main__":
    main()
