"""Charts of pages, read back as SVG: numbers stand where they belong."""

import math
import xml.etree.ElementTree as ET

import pytest

from sherl_cache.pipeline.report.charts import Series, heat_map, line_chart, stacked_areas, stacked_bars, thinned


def test_charts_place_numbers_where_they_belong() -> None:
    svg = ET.fromstring(line_chart([Series("a", [(0, 0), (1, 5), (2, 10)])], "x", "y"))
    points = [tuple(map(float, pair.split(","))) for pair in svg.find("polyline").get("points").split()]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.2)
    bars = ET.fromstring(stacked_bars([("a", {"p": 1, "q": 3}), ("b", {"p": 2})], "s")).findall("rect")
    widths = [float(bar.get("width")) for bar in bars[:3]]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)
    assert widths[2] == pytest.approx(2 * widths[0], rel=0.01)
    cells = ET.fromstring(heat_map(["a", "b"], [[1, -0.5], [None, 0.25]], "m")).findall("rect")
    assert [float(cell.get("fill-opacity")) for cell in cells] == [1, 0.5, 0, 0.25]
    assert [cell.get("class") for cell in cells] == ["heat", "heat below", "heat", "heat"]


def test_areas_lie_one_on_another_below_the_line() -> None:
    parts = [Series("a", [(1, 1), (2, 3)]), Series("b", [(1, 2), (2, 1)])]
    svg = ET.fromstring(stacked_areas(parts, Series("peak", [(1, 6), (2, 6)]), "x", "y"))
    first, second = (
        [tuple(map(float, pair.split(","))) for pair in area.get("points").split()] for area in svg.findall("polygon")
    )
    line = [tuple(map(float, pair.split(","))) for pair in svg.find("polyline").get("points").split()]
    assert first[:2] == second[:1:-1]  # the upper edge of one is the lower edge of the next
    height = first[3][1] - first[0][1]  # of one unit
    assert first[2][1] - first[1][1] == pytest.approx(3 * height, abs=0.3)
    assert first[0][1] - second[0][1] == pytest.approx(2 * height, abs=0.3)
    assert first[3][1] - line[0][1] == pytest.approx(6 * height, abs=0.3)
    single = ET.fromstring(stacked_areas([Series("a", [(1, 1)])], Series("peak", [(1, 2)]), "x", "y"))
    assert single.find("polygon") is not None


def test_no_two_ticks_read_the_same() -> None:
    for low, high in ((5.6568, 5.6569), (0, 1e-7), (1234.5, 1236.9), (-3, -2.99), (0.99, 1.0), (999_000, 1_003_000)):
        svg = ET.fromstring(line_chart([Series("a", [(0, low), (1, high)])], "x", "y"))
        ticks = [text.text for text in svg.findall("text") if text.get("text-anchor") == "end"]
        assert len(ticks) == len(set(ticks)) >= 2


def test_long_lines_are_averaged_and_one_value_is_a_line_too() -> None:
    points = [(float(x), math.sin(x)) for x in range(100_000)]
    few = thinned(points)
    assert len(few) <= 300
    assert sum(y for _, y in few) / len(few) == pytest.approx(sum(y for _, y in points) / len(points), abs=1e-3)
    for odd in ([], [(3.0, 3.0)], [(0.0, 0.0), (0.0, 0.0)], [(0.0, 1e-300), (1.0, 1e-300)]):
        ET.fromstring(line_chart([Series("a", odd)], "x", "y"))
