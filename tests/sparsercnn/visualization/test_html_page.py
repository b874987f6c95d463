import base64
import re

from matplotlib.figure import Figure

from sparsercnn.visualization.html_page import Picture, Section, Table, html_page, png_of


def test_a_page_holds_everything_and_refers_to_nothing() -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    png = png_of(figure)
    page = html_page("AP & more", [Section("Curves", ["Read <this>.", Table(["class", "AP"], [["<b>", 1.5]])]),
                                   Section("Pictures", [Picture(png, "worst")])])  # fmt: skip
    assert "<title>AP &amp; more</title>" in page
    assert "<p>Read &lt;this&gt;.</p>" in page
    assert "<tr><td>&lt;b&gt;</td><td>1.5</td></tr>" in page
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources[:2] == ["#section0", "#section1"]
    (embedded,) = sources[2:]
    assert base64.b64decode(embedded.removeprefix("data:image/png;base64,")) == png
