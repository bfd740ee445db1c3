"""The attention viewer in Chromium: what the page shows is what the .npz of the same run says.

Weights on the page are codes of 8 bits on a square-root scale, so they are compared within half a
code (see `step`). Where Chromium is missing these tests skip; under CI that is a failure."""
from __future__ import annotations

import os
import re
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command import text_of

ROOT = Path(__file__).resolve().parent.parent
TALES = ROOT / "models" / "tales.bin"
PROMPT = "Once upon a time there was a king who had three sons."
VIEWS = ["overview", "heat", "text", "lines", "table"]
HANG = 60  # seconds; pages open in one or two
# matplotlib's colours at 0, 1/9 .. 1
VIRIDIS = np.array([[int(c[i:i + 2], 16) for i in (0, 2, 4)] for c in "440154 482878 3e4a89 31688e "
                    "26828e 1f9e89 35b779 6ece58 b5de2b fde725".split()])


def lacking(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def step(w: float) -> float:
    """How far half a code moves a weight, and the readout's 4 digits a little."""
    return float(np.sqrt(w)) / 255 + 1 / 255**2 + 5e-4 * w


def chromium_runs(downloads: Path):
    try:
        from selenium import webdriver
    except ImportError:
        lacking("selenium is not installed")
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not browser:
        lacking("no chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=1280,800", "--force-device-scale-factor=1"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = shutil.which("chromedriver")
    return webdriver.Chrome(options=options,
                            service=webdriver.ChromeService(driver) if driver else None)


class Viewer:
    """A page in the browser."""

    def __init__(self, driver, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def open(self, page: Path, at: str = "") -> None:
        self.driver.get("about:blank")  # a new hash alone would not load the page again
        self.driver.get(f"{page.as_uri()}#{at}")
        self.wait(lambda: self.js("return document.body.dataset.ready") == "1",
                  "the page is not ready")
        self.settle()

    def js(self, code: str, *args):
        return self.driver.execute_script(code, *args)

    def wait(self, done, what: str) -> None:
        end = time.monotonic() + HANG
        while not done():
            assert time.monotonic() < end, what
            time.sleep(0.02)

    def settle(self) -> None:
        """Until what was asked for is drawn."""
        self.driver.execute_async_script("requestAnimationFrame(() => "
                                         "requestAnimationFrame(arguments[0]))")

    def go(self, at: str) -> None:
        self.js("attn.go(arguments[0])", at)
        self.settle()

    def state(self) -> dict:
        return self.js("return {...attn.state}")

    def find(self, css: str):
        return self.driver.find_element("css selector", css)

    def click(self, css: str) -> None:
        self.find(css).click()
        self.settle()

    def keys(self, *keys: str) -> None:
        self.find("body").send_keys(*keys)
        self.settle()

    def hover(self, css: str, x: float | None = None, y: float | None = None) -> str:
        """Move to a point of an element (its middle); the readout's text."""
        from selenium.webdriver import ActionChains

        element = self.find(css)
        box = self.js("const r = arguments[0].getBoundingClientRect(); return [r.width, r.height]",
                      element)
        x, y = (box[0] / 2 if x is None else x), (box[1] / 2 if y is None else y)
        ActionChains(self.driver, duration=0).move_to_element_with_offset(
            element, round(x - box[0] / 2), round(y - box[1] / 2)).perform()
        self.settle()
        return self.readout()

    def readout(self) -> str:
        return self.find("#readout").text

    def cell(self, q: int, k: int) -> tuple[float, float]:
        """The middle of a heatmap cell, in pixels of the canvas."""
        box, first = self.js("return [attn.box(), attn.meta.first_query]")
        return box["ox"] + (k + 0.5) * box["cx"], box["oy"] + (q - first + 0.5) * box["cy"]

    def pixel(self, x: float, y: float) -> list[int]:
        return self.js("return [...document.querySelector('#heat "
                       "canvas').getContext('2d').getImageData(...arguments, 1, 1).data]", x, y)

    def colours(self, view: str) -> int:
        """How many colours a view's canvas has."""
        return self.js("""const c = document.querySelector('#' + arguments[0] + ' canvas');
                          const d = c.getContext('2d').getImageData(0, 0, c.width, c.height);
                          return new Set(new Uint32Array(d.data.buffer)).size""", view)

    def saved(self, kind: str) -> bytes:
        """The file that the button for `kind` saves."""
        for old in self.downloads.iterdir():
            old.unlink()
        self.click(f"#{kind}")
        self.wait(lambda: any(f.suffix == f".{kind}" for f in self.downloads.iterdir()),
                  f"no .{kind} was saved")
        (path,) = self.downloads.iterdir()
        return path.read_bytes()


def pair_of(readout: str) -> tuple[int, int, float]:
    """(query, key, weight) of a readout."""
    found = re.search(r"query\s+(\d+).*key\s+(\d+).*weight\s+([\d.e-]+)", readout, re.S)
    assert found, readout
    return int(found[1]), int(found[2]), float(found[3])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    downloads = tmp_path_factory.mktemp("downloads")
    driver = chromium_runs(downloads)
    yield Viewer(driver, downloads)
    driver.quit()


@pytest.fixture
def viewer(browser: Viewer) -> Iterator[Viewer]:
    """The browser.

    Afterwards its console must be empty and nothing may have been loaded from elsewhere."""
    yield browser
    # ours: see `pixel`
    log = [entry for entry in browser.driver.get_log("browser")
           if "readback operations" not in entry["message"]]
    assert log == []
    assert browser.js("return performance.getEntriesByType('resource').map(e => "
                      "e.name).filter(name => !/^(blob|data):/.test(name))") == []


@pytest.fixture(scope="module")
def tales(run_bin: Path,
          tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A page and the maps of the same run."""
    where = tmp_path_factory.mktemp("tales")
    text_of(run_bin, TALES, "-i", PROMPT, "-n", "20", "-s", "1", "--dump-attn", where / "page.html",
            "--dump-attn", where / "maps.npz")
    with np.load(where / "maps.npz") as maps:
        return where / "page.html", dict(maps)


def test_meta_and_weights(viewer: Viewer, tales) -> None:
    """The page's weights are those of the .npz, and so is what it says about the text."""
    page, maps = tales
    viewer.open(page)
    meta = viewer.js("return attn.meta")
    assert (meta["tokens"], meta["ids"],
            meta["n_prompt"]) == (maps["tokens"].tolist(), maps["token_ids"].tolist(),
                                  maps["n_prompt"])
    L, H, Q, T = maps["attn"].shape
    got = np.array(viewer.js("""const [maps, T] = arguments, out = [];
        for (let map = 0; map < maps; map++) for (let q = 0; q < T; q++)
            for (let k = 0; k < T; k++) out.push(attn.weight(map, q, k));
        return out""", L * H, T)).reshape(L, H, T, T)
    assert (np.abs(got - maps["attn"]) <= np.sqrt(maps["attn"]) / 255 + 1 / 255**2).all()
    heads = got[1].mean(0)  # the mean of a layer's heads
    assert np.allclose([viewer.js("return attn.weight(arguments[0], 20, arguments[1])", L * H + 1,
                                  k) for k in range(21)], heads[20, :21], atol=1e-6)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_heatmap_pixels(viewer: Viewer, tales, scale: str) -> None:
    """A bright, a middling and a dark cell have viridis's colour of their weight.

    The upper triangle is empty."""
    page, maps = tales
    viewer.open(page, f"view=heat&layer=2&head=3&scale={scale}")
    w = maps["attn"][2, 3]
    q, k = np.tril_indices(len(w))
    order = np.argsort(w[q, k])
    for i in order[[0, len(order) // 2, -20, -1]]:
        value = viewer.js("return attn.weight(attn.map(), arguments[0], arguments[1])", int(q[i]),
                          int(k[i]))
        assert abs(value - w[q[i], k[i]]) <= step(w[q[i], k[i]])
        place = value if scale == "linear" else max(0, 1 + np.log10(max(value, 1e-9)) / 4)
        want = [np.interp(place, np.linspace(0, 1, len(VIRIDIS)), VIRIDIS[:, c]) for c in range(3)]
        got = viewer.pixel(*viewer.cell(int(q[i]), int(k[i])))
        # the page has 4,096 colours, rounded
        assert got[3] == 255 and np.abs(np.array(got[:3]) - want).max() <= 4, (got, want)
    bright, dark = (sum(viewer.pixel(*viewer.cell(int(q[i]), int(k[i])))[:3])
                    for i in order[[-1, 0]])
    assert bright > dark + 100
    assert viewer.pixel(*viewer.cell(3, 20))[3] == 0


def test_heatmap_hover(viewer: Viewer, tales) -> None:
    page, maps = tales
    viewer.open(page, "view=heat&layer=1&head=4")
    T = len(maps["tokens"])
    for zoom in ("", "&zoom=2&x=9&y=20"):
        viewer.go("view=heat&layer=1&head=4" + zoom)
        for q, k in ((20, 13), (22, 4), (25, 12), (17, 7)):
            readout = viewer.hover("#heat canvas", *viewer.cell(q, k))
            assert pair_of(readout)[:2] == (q, k)
            want = float(maps["attn"][1, 4, q, k])
            assert abs(pair_of(readout)[2] - want) <= step(want)
            assert all(str(maps["tokens"][t]).strip() in readout for t in (q, k))
            assert len(readout.split()[-1].lstrip("0.").replace(".", "")) <= 4  # significant digits
    viewer.go("view=heat&layer=1&head=4")
    assert "masked" in viewer.hover("#heat canvas", *viewer.cell(2, T - 1))


def test_heatmap_moves(viewer: Viewer, tales) -> None:
    """The wheel keeps the cell under the pointer, dragging moves.

    A double click shows the whole map."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    viewer.open(tales[0], "view=heat")
    x, y = map(round, viewer.cell(24, 10))
    before = viewer.hover("#heat canvas", x, y)
    canvas = viewer.find("#heat canvas")
    w, h = viewer.js("return [arguments[0].clientWidth, arguments[0].clientHeight]", canvas)
    ActionChains(viewer.driver).scroll_from_origin(
        ScrollOrigin.from_element(canvas, round(x - w / 2), round(y - h / 2)), 0, -500).perform()
    viewer.settle()
    assert viewer.state()["zoom"] > 1.5
    assert pair_of(viewer.hover("#heat canvas", x + 1, y + 1))[:2] == pair_of(before)[:2]
    old = viewer.js("return attn.box()")
    ActionChains(viewer.driver, duration=0).move_to_element(canvas).click_and_hold().move_by_offset(
        -30, -20).release().perform()
    viewer.settle()
    new = viewer.js("return attn.box()")
    assert (new["ox"] - old["ox"], new["oy"]
            - old["oy"]) == pytest.approx((-30, -20), abs=0.01) and viewer.state()["token"] == -1
    ActionChains(viewer.driver).double_click(canvas).perform()
    assert viewer.state()["zoom"] == 1


@pytest.mark.parametrize("direction", ["out", "in"])
def test_text_hover(viewer: Viewer, tales, direction: str) -> None:
    """Pointing at a token tints what it attends to, or what attends to it, the strongest most.

    Selecting keeps it."""
    page, maps = tales
    viewer.open(page, f"view=text&layer=0&head=2&dir={direction}")
    w, T = maps["attn"][0, 2], len(maps["tokens"])
    token = 15
    others = w[token, :] if direction == "out" else w[:, token]
    query, key, weight = pair_of(viewer.hover(f"[data-token='{token}']"))
    best = key if direction == "out" else query
    assert token == (query if direction == "out" else key)
    assert (abs(weight - others.max()) <= step(others.max())
            and others[best] >= others.max() - 2 * step(others.max()))
    tints = viewer.js("""return [...document.querySelectorAll('#text .t')].map(e => {
                           const style = getComputedStyle(e).backgroundColor;
                           const a = /rgba\\(.*, ([\\d.]+)\\)/.exec(style);
                           return a ? +a[1] : 1})""")
    assert len(tints) == T and tints[best] == max(tints) > 0.9
    assert all(t == 0
               for i, t in enumerate(tints) if (i > token if direction == "out" else i < token))
    viewer.click(f"[data-token='{token}']")
    viewer.hover("#text h2")
    assert viewer.state()["token"] == token and pair_of(viewer.readout())[:2] == (query, key)
    other = 10 if direction == "out" else 20
    got = pair_of(viewer.hover(f"[data-token='{other}']"))
    pair = (token, other) if direction == "out" else (other, token)
    assert got[:2] == pair and abs(got[2] - w[pair]) <= step(w[pair])


def test_text_parts(viewer: Viewer, tales) -> None:
    """Prompt and generated text stand apart, spaces are seen."""
    page, maps = tales
    viewer.open(page, "view=text")
    parts = viewer.js("return [...document.querySelectorAll('#text section')].map(s => "
                      "[...s.querySelectorAll('.t')].map(e => e.textContent))")
    n = int(maps["n_prompt"])
    want = [t.replace(" ", "\u00b7").replace("\n", "\u21b5") for t in maps["tokens"].tolist()]
    assert parts == [want[:n], want[n:]]


def test_every_view(viewer: Viewer, tales) -> None:
    """Each view draws, in both themes and scales, with and without the first token."""
    page, maps = tales
    viewer.open(page)
    L, H, Q, T = maps["attn"].shape
    for look in ("theme=light", "theme=dark&scale=log", "theme=dark&sink=drop&head=mean",
                 "theme=light&token=5&dir=in"):
        for view in VIEWS:
            viewer.go(f"view={view}&{look}")
            assert viewer.js("return [...document.querySelectorAll('main > div')].filter(d => "
                             "d.offsetParent !== null).map(d => d.id)") == [view]
            if view == "text":
                assert len(viewer.driver.find_elements("css selector", "#text .t")) == T
            elif view == "table":
                assert len(viewer.driver.find_elements("css selector", "tbody tr")) == L * H
            # these thumbnails are made turn by turn
            elif "sink=drop" in look and view == "overview":
                viewer.wait(lambda: viewer.colours("overview") > 20, "the overview is empty")
            else:
                assert viewer.colours(view) > 20, (view, look)
    light, dark = (viewer.js("attn.set({theme: arguments[0]}); return "
                             "getComputedStyle(document.body).backgroundColor", t)
                   for t in ("light", "dark"))
    assert (sum(map(int, re.findall(r"\d+", light))) > 700
            and sum(map(int, re.findall(r"\d+", dark))) < 120)


def test_overview(viewer: Viewer, tales) -> None:
    """A click on a thumbnail opens its head."""
    viewer.open(tales[0], "view=overview")
    x, y, size = viewer.js("const g = overviewGrid(...stageSize()); return "
                           "[...g.cell(2, 5), g.size]")
    viewer.hover("#overview canvas", x + size / 2, y + size / 2)
    assert viewer.find("#which").text == "Layer 2, head 5"
    from selenium.webdriver import ActionChains

    ActionChains(viewer.driver).click().perform()
    assert {k: viewer.state()[k]
            for k in ("view", "layer", "head")} == {"view": "heat", "layer": 2, "head": 5}


def test_lines(viewer: Viewer, tales) -> None:
    page, maps = tales
    viewer.open(page, "view=lines&layer=3&head=1")
    box = viewer.js("return linesBox(...stageSize())")
    for x, column, row in ((box["left"] - 20, "query", 14), (box["right"] + 20, "key", 9)):
        readout = pair_of(viewer.hover("#lines canvas", x, box["top"] + (row + 0.5) * box["size"]))
        w = maps["attn"][3, 1, row] if column == "query" else maps["attn"][3, 1, :, row]
        assert readout[0 if column == "query" else 1] == row
        assert abs(readout[2] - w.max()) <= step(w.max())


def test_drop_first_token(viewer: Viewer, tales) -> None:
    page, maps = tales
    viewer.open(page, "view=heat&layer=3&head=0&sink=drop")
    T = len(maps["tokens"])
    rows = np.array(viewer.js("""return Array.from({length: arguments[0]}, (_, q) =>
                                 Array.from({length: arguments[0]}, (_, k) =>
                                 attn.shown(attn.map(), q, k)))""", T))
    stored = np.array(viewer.js("""return Array.from({length: arguments[0]}, (_, q) =>
                                   Array.from({length: arguments[0]}, (_, k) =>
                                   attn.weight(attn.map(), q, k)))""", T))
    assert (rows[:, 0] == 0).all()
    rest = stored[:, 1:].sum(1)
    assert rest[0] == 0 and (rest[1:] > 0).all()
    assert np.allclose(rows[1:, 1:], stored[1:, 1:] / rest[1:, None], atol=1e-6)
    assert np.allclose(rows[1:].sum(1), 1, atol=1e-5)


def test_keyboard(viewer: Viewer, tales) -> None:
    from selenium.webdriver.common.keys import Keys

    viewer.open(tales[0])
    for i, view in enumerate(VIEWS):
        viewer.keys(str(i + 1))
        assert viewer.state()["view"] == view
    viewer.keys("2", Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ARROW_RIGHT,
                Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert (viewer.state()["layer"], viewer.state()["head"]) == (1, 2)
    assert viewer.find("#which").text == "Layer 1, head 2"
    viewer.keys(*[Keys.ARROW_UP] * 9, *[Keys.ARROW_LEFT] * 9)
    assert (viewer.state()["layer"], viewer.state()["head"]) == (0, 0)
    for key, name, value in (("s", "scale", "log"), ("x", "sink", "drop"), ("d", "dir", "in"),
                             ("m", "head", -1), ("j", "token", 0), ("j", "token", 1),
                             ("k", "token", 0)):
        viewer.keys(key)
        assert viewer.state()[name] == value, key
    viewer.keys(Keys.ESCAPE)
    assert viewer.state()["token"] == -1
    theme = viewer.js("return document.documentElement.dataset.theme")
    viewer.keys("t")
    assert viewer.js("return document.documentElement.dataset.theme") != theme
    viewer.keys("+")
    assert viewer.state()["zoom"] > 1
    viewer.keys("0", "?")
    assert viewer.state()["zoom"] == 1 and viewer.find("#help").is_displayed()
    viewer.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not viewer.find("#help").is_displayed()


def test_hash(viewer: Viewer, tales) -> None:
    """The address is a link to what is shown; nonsense in it does no harm."""
    viewer.open(tales[0])
    viewer.js("attn.set({view: 'heat', layer: 2, head: 5, token: 7, scale: 'log', sink: 'drop', "
              "dir: 'in', theme: 'dark', zoom: 2.5, x: 12.25, y: 17.5, sort: '-sink'})")
    want = viewer.state()
    viewer.wait(lambda: "head=5" in viewer.js("return location.hash"),
                "the hash does not follow the state")
    viewer.open(tales[0], viewer.js("return location.hash").lstrip("#"))
    assert viewer.state() == want
    viewer.open(tales[0], "view=lines&head=mean")
    assert viewer.state()["head"] == -1 and viewer.state()["view"] == "lines"
    for nonsense in (
        "view=%3Cscript%3E&layer=99&head=x&token=1e99&zoom=NaN&x=-5&theme=&&&=&sort=nothing",
        "constructor=1&__proto__=2", "%", "x"):
        viewer.open(tales[0], nonsense)
        assert (viewer.state()["view"] == "overview"
                and viewer.js("return attn.meta.layers[attn.state.layer]") == 0)
        viewer.keys("2")
        assert viewer.colours("heat") > 20


def test_table(viewer: Viewer, tales) -> None:
    page, maps = tales
    viewer.open(page, "view=table")

    def column(name: str) -> list[str]:
        return viewer.js("""const at = attn.meta.stats.columns.indexOf(arguments[0]);
                            return [...document.querySelectorAll('tbody tr')].map(
                                tr => tr.children[at].textContent)""", name)

    columns, rows = viewer.js("return [attn.meta.stats.columns, attn.meta.stats.rows]")
    for name in ("sink", "entropy", "head"):
        values = [row[columns.index(name)] for row in rows]
        for down in (True, False):
            viewer.click(f"th[data-column='{name}'] button")
            got = [float(x) for x in column(name)]
            assert got == [float(f"{x:.3f}") for x in sorted(values, reverse=down)]
            assert viewer.find(f"th[data-column='{name}']").get_attribute("aria-sort") == (
                "descending" if down else "ascending")
    sink = maps["attn"][..., 1:, 0].mean(-1)
    viewer.click("th[data-column='sink'] button")
    layer, head = np.unravel_index(sink.argmax(), sink.shape)
    assert (int(column("layer")[0]), int(column("head")[0])) == (layer, head)
    viewer.click("tbody tr")
    assert (viewer.state()["view"], viewer.state()["layer"],
            viewer.state()["head"]) == ("heat", layer, head)


@pytest.mark.parametrize("view", VIEWS)
def test_save(viewer: Viewer, tales, view: str) -> None:
    """The files parse; the SVG has the view's words, the PNG its pixels."""
    page, maps = tales
    viewer.open(page, f"view={view}&layer=1&head=2&token=12&theme=dark")
    svg = ElementTree.fromstring(viewer.saved("svg"))
    words = "".join(svg.itertext())
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"overview": "All heads", "table": "induction"}.get(view, "Layer 1, head 2") in words
    if view in ("heat", "text", "lines"):
        # of the lines what is in sight
        seen = maps["tokens"].tolist()[:25 if view == "lines" else None]
        assert all(t.replace(" ", "\u00b7") in words for t in seen)
    png = viewer.saved("png")
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    w, h = struct.unpack(">II", png[16:24])
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at:at + 8])
        data += png[at + 8:at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    assert w > 600 and h > 400 and len(set(zlib.decompress(data))) > 50


HOSTILE = ("<script>pwned=1</script></script><!--\n"
           "--><img src=x onerror=pwned=1> \"quoted\" 'single' & &lt; ]]> \\ `${pwned}`\r\n"
           "\t\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627 "
           "\U0001f600 \u0007 \ufeff \u2028 ").encode() + b"\xe4\xff\xc0" + b"x" * 300


def test_hostile_text(viewer: Viewer, run_bin: Path, tmp_path: Path) -> None:
    """Tokens and the model's name stay text."""
    model = tmp_path / "<img src=x onerror=pwned=1>.bin"
    model.symlink_to(TALES)
    (tmp_path / "prompt").write_bytes(HOSTILE)
    text_of(run_bin, model, "-f", tmp_path / "prompt", "-n", "0", "-c", "1000", "--dump-attn",
            tmp_path / "page.html")
    viewer.open(tmp_path / "page.html")
    for view in VIEWS:
        viewer.go(f"view={view}&token=6")
        assert viewer.js("return [typeof pwned, document.images.length, "
                         "document.querySelectorAll('script').length]") == [
            "undefined", 0,
            viewer.js("return attn.meta.layers.length * attn.meta.heads.length") + 3]
        ElementTree.fromstring(viewer.saved("svg"))
    assert viewer.find("#model").text == model.name
    text = viewer.js("return [...document.querySelectorAll('#text .t')].map(e => "
                     "e.textContent).join('')")
    assert ("<script>pwned=1</script>" in text and "<img\u00b7src=x\u00b7onerror=pwned=1>" in text
            and "\\xE4\\xFF\\xC0" in text)
    assert "\u202e" not in text
    assert viewer.js("return piecesOf(arguments[0])",
                     "a \u202eb\n") == [["a", False], ["\u00b7\\u202E", True], ["b", False],
                                        ["\u21b5", True]]


@pytest.mark.parametrize("flags", [["--attn-reduce", "mean"], ["--attn-reduce", "rollout"],
                                   ["--attn-reduce", "mean-heads"], ["--attn-reduce", "max-heads"],
                                   ["--attn-queries", "generated"], ["--attn-queries", "prompt"],
                                   ["--attn-queries", "7-7"],
                                   ["--attn-layers", "-1,1", "--attn-heads", "3"]], ids=" ".join)
def test_selections(viewer: Viewer, run_bin: Path, tmp_path: Path, flags: list[str]) -> None:
    """Reduced axes, chosen rows, layers and heads.

    Every view draws, and a cell says the weight of the .npz."""
    text_of(run_bin, TALES, "-i", PROMPT, "-n", "6", "-s", "1", *flags, "--dump-attn",
            tmp_path / "page.html", "--dump-attn", tmp_path / "maps.npz")
    maps = np.load(tmp_path / "maps.npz")
    viewer.open(tmp_path / "page.html")
    for view in VIEWS:
        viewer.go(f"view={view}")
        viewer.keys("j")
        if view in ("overview", "heat", "lines"):
            assert viewer.colours(view) > 5, view
    viewer.go("view=heat")
    L, H = maps["attn"].shape[:2]
    queries = maps["queries"].tolist()
    for i in {0, len(queries) // 2, len(queries) - 1}:
        q, k = queries[i], queries[i] // 2
        readout = pair_of(viewer.hover("#heat canvas", *viewer.cell(q, k)))
        want = float(maps["attn"][0, 0, i, k])
        assert readout[:2] == (q, k) and abs(readout[2] - want) <= step(want)
    viewer.go("view=table")
    viewer.click("tbody tr:last-child")
    assert (viewer.state()["view"] == "heat" and viewer.state()["layer"] == L - 1
            and viewer.state()["head"] == H - 1)


def test_one_token(viewer: Viewer, run_bin: Path, tmp_path: Path) -> None:
    text_of(run_bin, TALES, "-i", "", "-n", "0", "--dump-attn", tmp_path / "page.html")
    viewer.open(tmp_path / "page.html")
    for view in VIEWS:
        for more in ("", "&sink=drop", "&scale=log&token=0&dir=in"):
            viewer.go(f"view={view}{more}")
    viewer.go("view=heat")
    assert pair_of(viewer.hover("#heat canvas", *viewer.cell(0, 0))) == (0, 0, 1.0)


def test_thousand_tokens(viewer: Viewer, run_bin: Path, tmp_path: Path) -> None:
    """More tokens than pixels.

    Labels thin out, a pixel shows the largest of its cells, and nothing hangs."""
    (tmp_path / "prompt").write_text("\n".join(f"{i} There was once a king who had three sons, and "
                                               "they went into the wood." for i in range(80)))
    text_of(run_bin, TALES, "-f", tmp_path / "prompt", "-n", "0", "-c", "2000", "--dump-attn",
            tmp_path / "page.html", "--dump-attn", tmp_path / "maps.npz")
    maps = np.load(tmp_path / "maps.npz")
    w, T = maps["attn"][1, 1], len(maps["tokens"])
    assert T > 1000
    viewer.open(tmp_path / "page.html", "view=heat&layer=1&head=1")
    x, y = viewer.cell(900, 450)
    q, k, weight = pair_of(viewer.hover("#heat canvas", x, y))
    assert abs(q - 900) <= 4 and abs(k - 450) <= 4 and abs(weight - w[q, k]) <= step(w[q, k])
    for row in (300, 700, 1000):
        got = np.array(viewer.js("return Array.from({length: arguments[0]}, (_, k) => "
                                 "attn.weight(attn.map(), arguments[1], k))", T, row))
        assert (np.abs(got - w[row]) <= np.sqrt(w[row]) / 255 + 1 / 255**2).all()
    q, k = np.indices(w.shape)
    far = np.where((q - k > 20) & (k > 20), w, 0)
    for i in np.argsort(far, axis=None)[-8:]:  # single bright cells, in their pixel or the next
        q, k = divmod(int(i), T)
        x, y = map(int, viewer.cell(q, k))
        seen = max(sum(viewer.pixel(x + dx, y + dy)[:3]) for dx in (-1, 0, 1) for dy in (-1, 0, 1))
        assert seen >= sum(viewer.js("return attn.colour(arguments[0])", float(w[q, k]))) - 12
    viewer.js("""const row = q => '\\xff' + (q > 1 ? '\\0' +
                   (q > 128 ? String.fromCharCode((q - 1) % 128 + 128, (q - 1) >> 7) :
                    String.fromCharCode(q - 1)) : '') + (q > 0 ? '\\xff' : '');
                 // 1 0 0 .. 0 1, with runs of 128 and more
                 base64[0].textContent = btoa(
                   Array.from({length: T}, (_, q) => row(q)).join(''))""")
    assert viewer.js("return Array.from({length: T}, (_, q) => weight(0, q, 0) + weight(0, q, q) + "
                     "weight(0, q, q >> 1)).slice(2)") == [2] * (T - 2)
    viewer.go("view=heat&layer=1&head=1&zoom=20&x=450&y=900")
    assert pair_of(viewer.hover("#heat canvas", *viewer.cell(900, 450)))[:2] == (900, 450)
    for view in VIEWS:
        viewer.go(f"view={view}&layer=1&head=mean&scale=log&token={T - 1}")
    viewer.go("view=text&layer=1&head=1")
    assert pair_of(viewer.hover("[data-token='100']"))[0] == 100
