"""The demo's report: one file that holds all it needs, and whose commands give its numbers again."""

import csv
import html.parser
import re
import shlex

import pytest

from ladderkern.cli import demo_page, demo_parts, main, plot_style

pytestmark = pytest.mark.needs("transformers", "matplotlib", "jinja2", "tqdm", "gymnasium", "pygame")


class Page(html.parser.HTMLParser):
    """What a report holds: tags, ids, addresses that it mentions, and the text of some tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses, self.texts, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [(tag, value) for name, value in attrs if name in {"src", "srcset", "href", "xlink:href", "data"}]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1], data.strip()))

    def text_of(self, tag):
        return [text for name, text in self.texts if name == tag and text]


@pytest.fixture(scope="module")
def page(tiny_report):
    return Page(tiny_report.read_text(encoding="utf-8"))


def test_it_asks_for_nothing_outside_itself(tiny_report, page):
    fetched = [address for tag, address in page.addresses if tag != "a" and not address.startswith(("#", "data:"))]
    assert fetched == []
    linked = [address for tag, address in page.addresses if tag == "a" and not address.startswith(("#", "data:text/csv;"))]
    assert linked
    assert all(re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", address) for address in linked)
    text = tiny_report.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_ids_are_unique_and_every_reference_has_its_target(tiny_report, page):
    assert len(page.ids) == len(set(page.ids))
    text = tiny_report.read_text(encoding="utf-8")
    wanted = set(re.findall(r'(?:href="|url\()#([\w-]+)', text))
    assert wanted
    assert wanted <= set(page.ids)


def test_each_part_has_its_pictures_table_findings_and_caveats(page):
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == list(demo_parts.PARTS)
    pictures = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("role") == "img"]
    assert len(pictures) == 8
    assert len(set(pictures)) == 4
    assert all(re.search(r"\d", label) for label in pictures)  # the numbers of the picture, not its subject alone
    assert page.text_of("h3") == ["In numbers", "What they say", "What they do not say"] * 4
    assert sum(attrs.get("scope") == "row" for _, attrs in page.tags) == 6 + 2 + 7 + 3


def test_the_header_says_what_ran_where(page):
    facts = dict(zip(page.text_of("dt"), page.text_of("dd"), strict=False))
    assert facts["run"] == "quick, seed 3, 1 at a time"
    assert facts["ladderkern"].startswith("0.")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d \S+, .* s", facts["on"])
    assert re.search(r"\d cores$", facts["processor"])


@pytest.mark.parametrize("part", demo_parts.PARTS)
def test_the_command_of_a_part_gives_its_numbers_again(tiny_report, tiny_settings, page, part, tmp_path):
    (command,) = (text for text in page.text_of("code") if f"--part {part} " in text)
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "ladderkern", "demo"]
    with tiny_settings():
        assert main([*words[3:], "--jobs", "1", "--output", str(tmp_path)]) == 0
    first, again = (list(csv.DictReader((folder / f"{part}.csv").open())) for folder in (tiny_report.parent, tmp_path))
    for row in (*first, *again):
        for name in [name for name in row if name.endswith("_ms")]:
            del row[name]
    assert first == again


def test_a_colour_outside_the_palette_is_an_error():
    from matplotlib.figure import Figure

    def draw(colour):
        figure = Figure()
        figure.subplots().plot([0, 1], color=colour)
        return figure

    assert "var(--blue)" in plot_style.to_svg(plot_style.drawn(draw, plot_style.LIGHT["blue"]), "a")
    with pytest.raises(KeyError, match="#123456"):
        plot_style.to_svg(plot_style.drawn(draw, "#123456"), "a")


def _contrast(first, second):
    """WCAG's contrast of two colours, 1 to 21."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_lines_stand_out_from_the_paper_and_text_more_so(theme):
    colours = {name: pair[theme] for name, pair in plot_style.PALETTE.items()}
    strokes = {name for name in colours if plot_style.LIGHT[name] in {stroke.colour for stroke in plot_style.STROKES}}
    assert len(strokes) == 6
    assert all(_contrast(colours[name], colours["paper"]) >= 3 for name in strokes)
    assert all(_contrast(colours[name], colours["paper"]) >= 4.5 for name in ("ink", "muted", "blue"))


def test_strokes_differ_in_more_than_colour():
    assert len({stroke.marker for stroke in plot_style.STROKES}) == len(plot_style.STROKES)


def test_markup_in_a_finding_is_text_and_backticks_are_code():
    assert demo_page._prose("a <b> `x y` and `--seed`: 5 %") == (
        "a &lt;b&gt; <code>x y</code> and <code class=word>--seed</code>: 5\u00a0%"
    )


@pytest.mark.parametrize(("seconds", "text"), [(0.042, "0.04 s"), (3.14, "3.1 s"), (59.4, "59 s"), (161, "2 min 41 s")])
def test_durations(seconds, text):
    assert demo_page.duration(seconds) == text
