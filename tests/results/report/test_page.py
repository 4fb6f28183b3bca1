"""The explorer in a browser: tabs, pointer, keyboard, switches, light and dark."""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from matplotlib.image import imread
from synthetic import synthetic_result

from hf_fastif.results.report.graph import influence_graph
from hf_fastif.results.report.page import render_report
from hf_fastif.results.report.page_data import COORDINATE, STRENGTH
from hf_fastif.results.words import MINUS


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or chrome")
SLICES = {"first": 4, "second": 3}
LEFT, RIGHT = "ArrowLeft", "ArrowRight"
HOSTILE = "</script><img src=x onerror='window.harmed=1'><b>bold</b>"


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def result():
    result = synthetic_result(SLICES, num_trains=50, k=12)
    for name in ("influences", "queries"):
        table = getattr(result, name)
        columns = {column: table[column] for column in table.column_names}
        for column in columns:
            if column.endswith("hypothesis"):
                columns[column] = [f"{text} {HOSTILE}" for text in columns[column]]
        setattr(result, name, type(table).from_dict(columns, features=table.features))
    return result


@pytest.fixture(scope="module")
def page(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    return result.to_html(path, "Explorer", slice_column="group", subset_column="group")


@pytest.fixture
def graph(browser, page, result):
    """The page with its graph drawn, and the graph that it shows."""
    browser.open(page, height=1400)
    browser.value("openTab('graph')")
    drawn(browser, len(result.influences))
    yield influence_graph(result, "group", "group")
    assert browser.problems() == []


def drawn(browser, count):
    browser.wait(f"Number(document.querySelector('.graph').dataset.drawn) === {count}")


def state(browser, name):
    return browser.value(f"document.querySelector('.graph').dataset.{name}")


def text(browser, selector):
    return browser.value(f"document.querySelector({json.dumps(selector)})?.innerText")


def texts(browser, selector):
    return browser.value(f"[...document.querySelectorAll({json.dumps(selector)})].map(found => found.innerText)")


def point(browser, node, click=False):
    """Points at a node of the whole graph: queries first, then training examples."""
    browser.point(*spot(browser, node), click)
    browser.value("new Promise(requestAnimationFrame)")


def spot(browser, node):
    """Where a node of the whole graph is in the window."""
    left, top, size = board(browser)
    x, y = browser.value(f"[PLACES[{2 * node}], PLACES[{2 * node + 1}]]")
    return left + size / 2 + 0.44 * size * x / COORDINATE, top + size / 2 - 0.44 * size * y / COORDINATE


def board(browser):
    return browser.value(
        "(() => { const board = document.querySelector('.board'), box = board.getBoundingClientRect();"
        " return [box.left + board.clientLeft, box.top + board.clientTop, board.clientWidth] })()"
    )


def hot_at(browser, x, y):
    """The name of the node that a pointer finds there."""
    browser.point(x, y)
    browser.value("new Promise(requestAnimationFrame)")
    return state(browser, "hot")


@pytest.fixture
def places(browser, graph):
    browser.value(
        "{ const packed = JSON.parse(document.querySelector('.graph-data').textContent).places;"
        " window.PLACES = [...new Int16Array(Uint8Array.from(atob(packed), c => c.charCodeAt(0)).buffer)]; null }"
    )
    return np.array(browser.value("PLACES")).reshape(-1, 2)


def single_process(places, first, last):
    """The node among some that is farthest from all others, so that pointing at it is not ambiguous."""
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(len(places))
    return int(distances.min(axis=1)[first:last].argmax()) + first


def edges_of(graph, node):
    """The influences of a node, strongest first, as the page orders them."""
    count = len(graph.query_indices)
    own = graph.edge_queries == node if node < count else graph.edge_trains == node - count
    order = np.argsort(-graph.strengths()[own], kind="stable")
    return graph.influences[own][order], graph.train_indices[graph.edge_trains[own][order]]


def test_the_data_in_the_page_are_those_of_the_graph(result):
    graph = influence_graph(result, "group", "group")
    found = re.search(r'class="graph-data">(.*?)</script>', render_report(result, "T", "group", "group"), re.DOTALL)[1]
    data = json.loads(found)

    def read(name, kind):
        return np.frombuffer(b64decode(data[name]), kind)

    edges = zip(read("edgeQueries", "<u4"), read("edgeTrains", "<u4"), read("influences", "<f4"), strict=True)
    expected = zip(graph.edge_queries, graph.edge_trains, graph.influences.astype("f4"), strict=True)
    assert sorted(edges) == sorted(expected)
    strengths = read("strengths", "u1")
    assert strengths[0] == STRENGTH and (np.diff(strengths.astype(int)) <= 0).all()
    assert [node["index"] for node in data["trains"]] == graph.train_indices.tolist()
    train = graph.edge_trains[0]
    assert data["trains"][train]["texts"][0] == ["premise", result.influences[0]["train_premise"]]


def test_texts_are_never_markup(browser, graph):
    browser.value("document.querySelector('canvas.marks').focus()")
    browser.press("ArrowRight", "Enter")
    assert HOSTILE in text(browser, ".chosen")
    assert browser.value("[document.images.length, window.harmed ?? 0]") == [0, 0]


def test_pointing_shows_text_and_scores(browser, graph, places):
    count = len(graph.query_indices)
    point(browser, 2)
    shown = text(browser, ".tip")
    influences, _ = edges_of(graph, 2)
    assert f"query {graph.query_indices[2]}, first" in shown
    assert f"{(influences < 0).sum()} helpful, {(influences > 0).sum()} harmful" in shown
    assert "label entailment, predicted non-entailment" in shown and "wrong" in shown
    assert f"query {graph.query_indices[2]}:" in shown and HOSTILE in shown
    train = single_process(places, count, len(places))
    point(browser, train)
    assert f"training example #{graph.train_indices[train - count]}" in text(browser, ".tip")
    browser.point(2, 2)
    assert browser.value("document.querySelector('.tip').hidden")


def test_a_click_fixes_a_node_and_lists_its_edges(browser, graph, places):
    point(browser, 5, click=True)
    assert state(browser, "fixed") == f"query {graph.query_indices[5]}"
    influences, trains = edges_of(graph, 5)
    listed = texts(browser, ".edges-list .edge")
    assert len(listed) == len(influences) < 20
    for found, influence, train in zip(listed, influences, trains, strict=True):
        assert f"training example #{train}\n" in found
        number = float(found.split()[0].replace(MINUS, "-"))
        assert number == pytest.approx(influence, rel=6e-3)
    browser.value("document.querySelector('.edges-list .edge').click()")
    assert state(browser, "fixed") == f"training example #{trains[0]}"
    assert browser.value("document.activeElement.className") == "chosen"
    point(browser, 5)
    assert text(browser, ".tip span").endswith(", helpful" if influences[0] < 0 else ", harmful")


def test_the_graph_shows_predicted_changes(browser, tmp_path):
    result = synthetic_result(SLICES, num_trains=50, k=12, change="removed", num_train=50)
    browser.open(result.to_html(tmp_path / "report.html"), height=1400)
    browser.value("openTab('graph')")
    drawn(browser, len(result.influences))
    browser.value("document.querySelector('canvas.marks').focus()")
    browser.press("ArrowRight", "Enter")
    query = int(re.match(r"query (\d+)", state(browser, "fixed"))[1])
    changes = [row["predicted_loss_change"] for row in result.influences if row["query_index"] == query]
    listed = [float(entry.split()[0].replace(MINUS, "-")) for entry in texts(browser, ".edges-list .edge")]
    assert sorted(listed) == pytest.approx(sorted(changes), rel=6e-2, abs=1e-5)
    browser.value("document.querySelector('canvas.marks').focus()")
    browser.press("ArrowDown")
    number = texts(browser, ".edges-list .edge")[0].split()[0]
    direction = "helpful" if number.startswith("+") else "harmful"
    assert text(browser, ".tip span") == f"predicted change of the loss if removed {number}, {direction}"
    means = texts(browser, ".numbers-table td")[-2:]
    expected = [
        np.mean([row["predicted_loss_change"] for row in result.influences if row["direction"] == name])
        for name in ("helpful", "harmful")
    ]
    assert [float(mean.replace(MINUS, "-")) for mean in means] == pytest.approx(expected, rel=6e-3)
    assert browser.problems() == []


def test_switches_take_signs_and_slices_away(browser, graph, places):
    total = len(graph.influences)
    harmful, of_second = graph.influences > 0, graph.edge_slices == 1
    assert text(browser, ".shown") == f"{total} of {total} edges"
    point(browser, 0, click=True)
    browser.value("document.querySelector('[data-sign=\"1\"]').click()")
    drawn(browser, int((~harmful).sum()))
    assert text(browser, ".shown") == f"{(~harmful).sum()} of {total} edges"
    assert not any(found.startswith("+") for found in texts(browser, ".edges-list .edge"))
    browser.value("document.querySelector('[data-slice=\"0\"]').click()")
    drawn(browser, int((~harmful & of_second).sum()))
    assert state(browser, "fixed") == ""  # its slice is gone
    browser.value("document.querySelector('[data-sign=\"1\"]').click()")
    drawn(browser, int(of_second.sum()))


def test_the_wheel_magnifies_about_the_pointer(browser, graph, places):
    left, top, size = board(browser)
    other = single_process(places, len(graph.query_indices), len(places))
    name = f"training example #{graph.train_indices[other - len(graph.query_indices)]}"
    place, far = np.array(spot(browser, other)), spot(browser, 0)
    middle = np.array([left + size / 2, top + size / 2])
    browser.wheel(*place, -600)
    browser.wait("Number(document.querySelector('.graph').dataset.zoom) > 1")
    drawn(browser, len(graph.influences))
    zoom = math.exp(1.2)
    assert state(browser, "zoom") == f"{zoom:.2f}"
    assert hot_at(browser, *place) == name  # it has not moved
    browser.wheel(*middle, 300)
    browser.wait(f"document.querySelector('.graph').dataset.zoom !== '{zoom:.2f}'")
    assert hot_at(browser, *(middle + (place - middle) * math.exp(-0.6))) == name
    browser.wheel(*place, 5000)
    browser.wait("document.querySelector('.graph').dataset.zoom === '1.00'")
    assert hot_at(browser, *place) == name and hot_at(browser, *far) == f"query {graph.query_indices[0]}"


def test_dragging_moves_what_is_seen_and_chooses_nothing(browser, graph, places):
    left, top, size = board(browser)
    other = single_process(places, len(graph.query_indices), len(places))
    name = f"training example #{graph.train_indices[other - len(graph.query_indices)]}"
    place = np.array(spot(browser, other))
    middle = np.array([left + size / 2, top + size / 2])
    browser.value("document.querySelector('[data-view=in]').click()")
    there, way = middle + 1.5 * (place - middle), np.array([40.0, -25.0])
    assert hot_at(browser, *there) == name
    browser.drag(tuple(there), tuple(there + way / 2), tuple(there + way))
    assert not state(browser, "fixed") and hot_at(browser, *(there + way)) == name
    browser.drag(tuple(there + way), tuple(there + way + 2))  # an unsteady hand clicks
    assert state(browser, "fixed") == name
    browser.drag(tuple(middle), tuple(middle + 3 * size))  # no further than its edge
    assert hot_at(browser, *(middle + 1.5 * (place - middle) + size / 4)) == name


def test_fingers_magnify(browser, graph, places):
    left, top, size = board(browser)
    browser.pinch(left + size / 2, top + size / 2, 40, 80)
    browser.wait("document.querySelector('.graph').dataset.zoom === '2.00'")
    middle, place = (
        np.array([left + size / 2, top + size / 2]),
        np.array(spot(browser, other := single_process(places, 7, 57))),
    )
    assert hot_at(browser, *(middle + 2 * (place - middle))).endswith(f"#{graph.train_indices[other - 7]}")


def test_keys_and_buttons_move_the_view(browser, graph, places):
    left, top, size = board(browser)
    middle = np.array([left + size / 2, top + size / 2])
    other = single_process(places, len(graph.query_indices), len(places))
    name, place = f"#{graph.train_indices[other - len(graph.query_indices)]}", np.array(spot(browser, other))
    browser.value("document.querySelector('canvas.marks').focus()")
    browser.press("+", "+")
    assert state(browser, "zoom") == "2.25" and "magnified 2.3 times" in text(browser, ".status")
    browser.press("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowUp")
    assert hot_at(browser, *(middle + 2.25 * (place - middle) + [-0.2 * size, 0.1 * size])).endswith(name)
    browser.press("-")
    assert state(browser, "zoom") == "1.50"
    browser.press("0")
    assert state(browser, "zoom") == "1.00" and hot_at(browser, *place).endswith(name)
    for key in "+" * 6:
        browser.press(key)
    browser.press("ArrowRight", "ArrowRight")  # a query that is out of sight is brought into it
    assert state(browser, "hot") == f"query {graph.query_indices[1]}"
    assert browser.value("document.querySelector('.tip').hidden") is False
    assert hot_at(browser, *middle) == f"query {graph.query_indices[1]}"
    browser.value("document.querySelector('[data-view=all]').click()")
    assert state(browser, "zoom") == "1.00" and text(browser, ".status") == "The whole graph is visible."


def test_everything_works_without_a_mouse(browser, graph):
    browser.value("document.querySelector('#tab-graph').focus()")
    for _ in range(12):
        browser.press("Tab")
        if browser.value("document.activeElement.classList.contains('marks')"):
            break
    assert browser.value("document.activeElement.matches('canvas.marks:focus-visible')")
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    name = [f"query {index}" for index in graph.query_indices]
    for key, expected in (
        ("ArrowRight", name[0]),
        ("ArrowRight", name[1]),
        ("ArrowLeft", name[0]),
        ("ArrowLeft", name[-1]),
    ):
        browser.press(key)
        assert state(browser, "hot") == expected
        assert expected in text(browser, ".status")
    _, trains = edges_of(graph, len(name) - 1)
    for key, place in (
        ("ArrowDown", 0),
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("ArrowLeft", 0),
        ("ArrowLeft", -1),
    ):
        browser.press(key)
        assert state(browser, "hot") == f"training example #{trains[place]}"
    browser.press("ArrowUp")
    assert state(browser, "hot") == name[-1]
    browser.press("Enter")
    assert state(browser, "fixed") == name[-1] and state(browser, "hot") == ""
    assert browser.value("document.activeElement.className") == "chosen"
    browser.press("Tab", "Tab", "Tab", "Enter")  # two links, then the first edge
    assert state(browser, "fixed") == f"training example #{trains[0]}"
    browser.press("Escape")
    assert state(browser, "fixed") == "" and browser.value("document.activeElement.classList.contains('marks')")


def test_tabs(browser, page, graph):
    shown = "[...document.querySelectorAll('.panel')].filter(panel => !panel.hidden).map(panel => panel.id)"
    assert texts(browser, ".tabs button") == ["Queries", "Examples", "Graph", "Settings"]
    assert browser.value(shown) == ["graph"]
    browser.value("document.querySelector('#tab-graph').focus()")
    for key, expected in ((RIGHT, "settings"), (RIGHT, "queries"), (LEFT, "settings")):
        browser.press(key)
        assert browser.value(shown) == [expected]
        assert browser.value("document.activeElement.getAttribute('aria-controls')") == expected
        assert browser.value("location.hash") == f"#{expected}"


def test_queries_and_graph_lead_to_each_other(browser, graph):
    browser.value(
        "openTab('queries'); document.querySelector('#query-3').parentElement.querySelector('.link').click()"
    )
    assert state(browser, "fixed") == "query 3"
    browser.value("document.querySelector('.chosen .links .link').click()")
    assert browser.value("document.activeElement.id") == "query-3"
    browser.value("openTab('shared'); document.querySelector('.query-links .link').click()")
    assert re.fullmatch(r"query-\d", browser.value("document.activeElement.id"))


def test_dark_and_light_differ_in_page_and_canvas(browser, graph, tmp_path):
    left, top, width = browser.value(
        "(() => { const box = document.querySelector('.board').getBoundingClientRect();"
        " return [box.left, box.top, box.width] })()"
    )
    angle, far = 2 * math.pi * 0.2, 0.44 * 1.035 * width  # on the arc of the first slice
    x, y = round(left + width / 2 + far * math.sin(angle)), round(top + width / 2 - far * math.cos(angle))
    seen = []
    for dark in (False, True):
        browser.dark(dark)
        browser.value("new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))")
        browser.picture(tmp_path / "seen.png")
        around = imread(tmp_path / "seen.png")[y - 4 : y + 5, x - 4 : x + 5, :3].mean(axis=2)
        seen.append((float(around.min()), float(around.max())))
    browser.dark(False)
    (ink, paper), (dark_paper, dark_ink) = seen
    assert ink < 0.3 and paper > 0.95 and dark_paper < 0.2 and dark_ink > 0.7


def test_a_narrow_page_stays_within_its_width(browser, page, result):
    browser.open(page, width=360, height=800)
    browser.value("openTab('graph')")
    drawn(browser, len(result.influences))
    browser.value("document.querySelector('canvas.marks').focus()")
    browser.press("ArrowRight", "Enter")
    assert browser.value("document.documentElement.scrollWidth") <= 360
    assert browser.value("document.querySelector('.board').clientWidth") > 280


def test_a_result_without_texts(browser, result, tmp_path):
    bare = result.without_text()
    bare.summary.slices = {"the first": 4, "the second": 3}
    page = bare.to_html(tmp_path / "bare.html")
    assert "premise" not in page.read_text()
    browser.open(page, height=1400)
    browser.value("document.querySelector('#query-0 ~ .link').click()")
    drawn(browser, len(result.influences))
    shown = text(browser, ".chosen")
    assert "Query 0, the first" in shown or "query 0, the first" in shown
    assert "predicted non-entailment" in shown and "training example #" in shown
    assert browser.problems() == []


def test_without_scripts_everything_but_the_drawing_is_there(browser, page):
    browser.open(page, scripts=False)
    assert browser.value("document.querySelector('.tabs').hidden && document.querySelector('.graph').hidden")
    shown = text(browser, "body")
    assert "scripts are off" in shown and "Edges of each slice" in shown and "Query 6" in shown
    assert texts(browser, ".numbers-table tbody tr")[0].split()[:2] == ["first", "4"]
