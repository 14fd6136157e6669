"""The demo's report in a real browser: wide and narrow, light and dark."""

import shutil
from pathlib import Path

import pytest

from ladderkern.cli import demo_parts
from ladderkern.cli.plot_style import PALETTE

pytestmark = pytest.mark.needs("transformers", "matplotlib", "jinja2", "tqdm", "gymnasium", "pygame")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")

# Texts of pictures that are seen, and stand outside their picture. One pixel is left to rounding.
CUT_OFF = """() => [...document.querySelectorAll(".picture svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    return frame.width && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
      || box.bottom > frame.bottom + 1);
  }).map(text => text.textContent);
})"""


@pytest.fixture(scope="module")
def browser():
    """Chromium, skipping the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs it")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as started:
        if path is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("no Chromium: apt-get install chromium-headless-shell")
        browser = started.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class View:
    """A page in a window of its own that has no network, and what it asked for and complained of."""

    def __init__(self, browser, path, width=1280, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def overflows(self):
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_loads_alone_without_complaint_and_fits_the_window(browser, tiny_report, width, scheme):
    with View(browser, tiny_report, width, scheme) as view:
        assert not view.overflows()
        assert view.page.evaluate(CUT_OFF) == []
        view.page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
        assert not view.overflows()
        view.page.wait_for_load_state("networkidle")
        assert view.requests == [tiny_report.as_uri()]
        assert view.complaints == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_each_part_shows_one_picture_that_fills_its_place(browser, tiny_report, width, scheme):
    with View(browser, tiny_report, width, scheme) as view:
        assert [s.get_attribute("id") for s in view.page.locator("main > section").all()] == list(demo_parts.PARTS)
        for section in view.page.locator("main > section").all():
            (picture,) = [picture for picture in section.locator(".picture").all() if picture.is_visible()]
            box = picture.locator("svg").bounding_box()
            assert box["width"] > 0.75 * section.bounding_box()["width"]
            assert box["height"] > 200
            sizes = picture.locator("svg image").evaluate_all(
                "all => Promise.all(all.map(one => { const image = new Image(); image.src = one.href.baseVal; "
                "return image.decode().then(() => image.naturalWidth); }))"
            )
            assert len(sizes) == ((6 if width > 640 else 3) * 4 if section.get_attribute("id") == "images" else 0)
            assert all(size >= 100 for size in sizes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_page_and_pictures_have_the_colours_of_the_scheme(browser, tiny_report, scheme, tmp_path):
    def rgb(name):
        colour = PALETTE[name][SCHEMES.index(scheme)]
        return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"

    with View(browser, tiny_report, scheme=scheme) as view:
        assert view.page.evaluate("getComputedStyle(document.body).backgroundColor") == rgb("paper")
        fills = view.page.locator("#spam .wide text").evaluate_all("all => all.map(one => getComputedStyle(one).fill)")
        assert set(fills) == {rgb("ink"), rgb("muted")}
        strokes = view.page.locator("#spam .wide path").evaluate_all("all => all.map(one => getComputedStyle(one).stroke)")
        assert {rgb(name) for name in ("grey", "red", "amber", "blue", "green", "purple")} <= set(strokes)
        view.page.screenshot(path=tmp_path / "page.png", full_page=True)
    from matplotlib.image import imread

    pixels = (imread(tmp_path / "page.png")[..., :3] * 255).round().astype(int)
    assert f"rgb({', '.join(map(str, pixels[0, 0]))})" == rgb("paper")
    assert len({tuple(pixel) for pixel in pixels[::7, ::7].reshape(-1, 3)}) > 50  # something is drawn


def test_the_button_copies_the_command(browser, tiny_report):
    with View(browser, tiny_report) as view:
        view.context.grant_permissions(["clipboard-read", "clipboard-write"])
        view.page.locator("#prm button").click()
        view.page.locator("#prm button", has_text="Copied").wait_for()
        assert view.page.evaluate("navigator.clipboard.readText()") == view.page.locator("#prm pre").inner_text()


@pytest.mark.parametrize(("width", "scheme"), list(zip(WIDTHS, SCHEMES, strict=True)))
def test_axe_finds_no_barrier(browser, tiny_report, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the accessibility test needs it")
    with View(browser, tiny_report, width, scheme) as view:
        view.page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
        found = axe.Axe().run(view.page)
        assert found.violations_count == 0, found.generate_report()


def test_the_checks_see_what_they_look_for(browser, tiny_report, tmp_path):
    text = tiny_report.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    wide = '<div style="width: 2000px">wide</div><img src="https://example.invalid/picture.png">'
    cut = '<div class="picture"><svg viewBox="0 0 9 9" width="9"><text x="5">a long text</text></svg></div>'
    broken.write_text(text.replace("<main>", f"<main>{wide}{cut}"), encoding="utf-8")
    with View(browser, broken) as view:
        assert view.overflows()
        assert view.page.evaluate(CUT_OFF) == ["a long text"]
        assert any("example.invalid" in line for line in view.requests + view.complaints)
        assert view.complaints
