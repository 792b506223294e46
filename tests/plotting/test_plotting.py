import os
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.patches import FancyArrowPatch, PathPatch

from tfstruct import plotting
from tfstruct.plotting.structure import _RADIUS, _edge_path


def random_probabilities(num_nodes, seed=17):
    return np.tril(np.random.default_rng(seed).uniform(size=[num_nodes, num_nodes]), -1)


def open_edges(probabilities, threshold=0.5):
    return {tuple(map(int, edge)) for edge in np.argwhere(probabilities >= threshold) if edge[0] > edge[1]}


def artists(figure, prefix):
    """The edges with a group id such as open:<child>:<parent>, by (child, parent)."""
    found = {}
    for artist in [*figure.axes[0].patches, *figure.axes[0].texts]:
        kind, _, edge = (artist.get_gid() or "").partition(":")
        if kind == prefix and edge:
            assert tuple(map(int, edge.split(":"))) not in found, "drawn twice"
            found[tuple(map(int, edge.split(":")))] = artist
    return found


def parse_dot(text):
    nodes = dict(re.findall(r'^  (\w+) \[label="([^"]*)"', text, re.MULTILINE))
    edges = {}
    for parent, child, attributes in re.findall(r"^  (\w+) -> (\w+) \[(.*)\];$", text, re.MULTILINE):
        edges[child, parent] = dict(re.findall(r'(\w+)="?([^",]*)"?', attributes))
    return nodes, edges


# structure


@pytest.mark.parametrize("num_nodes", [1, 2, 5, 20])
def test_dot_has_exactly_the_edges(num_nodes):
    probabilities = random_probabilities(num_nodes)
    dims = list(range(3, 3 + num_nodes))
    nodes, edges = parse_dot(plotting.to_dot(probabilities, dims))
    names = [f"z{node + 1}" for node in range(num_nodes)]
    assert nodes == {**{name: f"{name} ({dim})" for name, dim in zip(names, dims, strict=True)}, "x": "x"}
    assert {edge for edge in edges if edge[0] == "x"} == {("x", name) for name in names}
    latent = {edge: value for edge, value in edges.items() if edge[0] != "x"}
    assert set(latent) == {(names[i], names[j]) for i in range(num_nodes) for j in range(i)}
    for (child, parent), attributes in latent.items():
        probability = probabilities[names.index(child), names.index(parent)]
        assert attributes["label"] == f"{probability:.2f}"
        assert attributes["style"] == ("solid" if probability >= 0.5 else "dashed")


def test_dot_leaves_out_closed_edges_and_x_on_request():
    probabilities = random_probabilities(6)
    text = plotting.to_dot(probabilities, threshold=0.8, show_closed=False, show_observed=False)
    nodes, edges = parse_dot(text)
    assert list(nodes) == ["z1", "z2", "z3", "z4", "z5", "z6"]
    assert set(edges) == {(f"z{i + 1}", f"z{j + 1}") for i, j in open_edges(probabilities, 0.8)}
    assert text.count("{") == text.count("}") == 1


@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        (np.zeros([2, 3]), r"\[N, N\], found \[2, 3\]"),
        (np.zeros([0, 0]), r"\[N, N\]"),
        (np.zeros([3]), r"\[N, N\]"),
        ([[0.0, 0.0], [1.5, 0.0]], "1.5"),
        ([[0.0, 0.0], [np.nan, 0.0]], "nan"),
        (
            [[0.0, 0.25], [0.0, 0.0]],
            "0.25 for the edge from node 1 to node 0",
        ),  # parents and children swapped
        ([[0.5, 0.0], [0.0, 0.0]], "from node 0 to node 0"),
    ],
)
def test_what_is_no_ordered_graph_is_refused(matrix, match):
    for function in (plotting.to_dot, plotting.draw_structure):
        with pytest.raises(ValueError, match=match):
            function(matrix)


def test_dot_refuses_another_number_of_dims():
    with pytest.raises(ValueError, match="node_dims must have 3 entries, one per node, found 2"):
        plotting.to_dot(np.zeros([3, 3]), [4, 4])


@pytest.mark.parametrize("num_nodes", [1, 2, 5, 7, 8, 20])
def test_one_arrow_per_open_edge_in_its_colour_and_one_line_per_closed_edge(num_nodes):
    probabilities = random_probabilities(num_nodes)
    figure = plotting.draw_structure(probabilities)
    arrows, lines = artists(figure, "open"), artists(figure, "closed")
    colors = plotting.edge_colors(plotting.lower_triangle_edges(num_nodes))
    assert set(arrows) == open_edges(probabilities)
    assert set(arrows) | set(lines) == set(colors)
    assert not set(arrows) & set(lines)
    assert all(isinstance(line, PathPatch) for line in lines.values())
    drawn = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    assert len(drawn) == len(arrows) + 1  # one more to x
    for edge, arrow in arrows.items():
        assert to_rgba(arrow.get_edgecolor(), alpha=1.0) == pytest.approx(to_rgba(colors[edge]))
    widths = [arrows[edge].get_linewidth() for edge in sorted(arrows, key=lambda edge: probabilities[edge])]
    assert widths == sorted(widths)
    labels = artists(figure, "label")
    assert {edge: label.get_text() for edge, label in labels.items()} == (
        {edge: f"{probabilities[edge]:.2f}" for edge in colors} if num_nodes <= 7 else {}
    )
    names = [text.get_text() for text in figure.axes[0].texts if text.get_gid() is None]
    assert names == [f"z{node + 1}" for node in range(num_nodes)] + ["x"]


def test_undecided_edges_are_dashed_in_their_colours():
    probabilities = np.zeros([4, 4])
    probabilities[1, 0], probabilities[2, 0], probabilities[2, 1], probabilities[3, 0] = 0.95, 0.7, 0.3, 0.05
    figure = plotting.draw_structure(probabilities, decided=0.1)
    edges = artists(figure, "open") | artists(figure, "closed")
    dashes = {edge: artist.get_linestyle() for edge, artist in edges.items()}
    assert {edge for edge, style in dashes.items() if style == (0, (4, 2))} == {(2, 0), (2, 1)}
    assert set(artists(figure, "open")) == {(1, 0), (2, 0)}
    colors = plotting.edge_colors(plotting.lower_triangle_edges(4))
    np.testing.assert_allclose(edges[2, 1].get_edgecolor()[:3], colors[2, 1][:3])
    assert len(set(edges[3, 0].get_edgecolor()[:3])) == 1  # grey
    plain = plotting.draw_structure(probabilities)
    assert not any(artist.get_linestyle() == (0, (4, 2)) for artist in artists(plain, "open").values())


def test_closed_edges_and_x_can_be_left_out():
    probabilities = random_probabilities(6)
    figure = plotting.draw_structure(probabilities, threshold=0.8, show_closed=False, show_observed=False)
    assert set(artists(figure, "open")) == open_edges(probabilities, 0.8)
    assert artists(figure, "closed") == {}
    assert sum(isinstance(patch, FancyArrowPatch) for patch in figure.axes[0].patches) == len(
        open_edges(probabilities, 0.8)
    )


def points_along(path, count=400):
    """Points [count, 2] of a line or a cubic, from the definition of the Bernstein polynomials."""
    t = np.linspace(0.0, 1.0, count)[:, None]
    if len(path.vertices) == 2:
        return (1 - t) * path.vertices[0] + t * path.vertices[1]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    return weights @ path.vertices


@pytest.mark.parametrize("num_nodes", [2, 3, 4, 5, 8, 13, 20])
def test_edges_join_their_nodes_and_pass_through_no_third(num_nodes):
    for child, parent in plotting.lower_triangle_edges(num_nodes):
        points = points_along(_edge_path(child, parent, num_nodes))
        distances = np.hypot(points[:, :1], points[:, 1:] + np.arange(num_nodes))  # [points, nodes]
        assert distances[0, parent] == pytest.approx(_RADIUS)
        assert distances[-1, child] == pytest.approx(_RADIUS)
        assert distances.min() > 0.999 * _RADIUS  # enters not even its own nodes
        others = np.delete(distances, [child, parent], axis=1)
        assert others.min(initial=np.inf) > _RADIUS + 0.1
        steps = np.diff(points, axis=0)
        turns = np.sum(steps[1:] * steps[:-1], axis=1) / np.prod(
            [np.linalg.norm(steps[1:], axis=1), np.linalg.norm(steps[:-1], axis=1)], axis=0
        )
        assert turns.min() > 0.99  # smooth: no kink


@pytest.mark.parametrize("num_nodes", [5, 20])
def test_no_two_edges_coincide(num_nodes):
    lines = [points_along(_edge_path(*edge, num_nodes), 101) for edge in plotting.lower_triangle_edges(num_nodes)]
    for index, line in enumerate(lines):
        for other in lines[:index]:
            # Lines may cross in points, so it is the share of near points that tells.
            gaps = np.linalg.norm(line[::5, None] - other[None], axis=2).min(axis=1)
            assert np.mean(gaps < 0.04) < 0.4, (index, gaps)


@pytest.mark.parametrize("num_nodes", [5, 20])
def test_edges_of_one_node_leave_and_arrive_in_different_directions(num_nodes):
    rays = {node: [] for node in range(num_nodes)}  # at each node, the directions of its edges in degrees
    for child, parent in plotting.lower_triangle_edges(num_nodes):
        points = points_along(_edge_path(child, parent, num_nodes))
        for node, ray in ((parent, points[1] - points[0]), (child, points[-2] - points[-1])):
            rays[node].append(np.rad2deg(np.arctan2(*ray)) % 360.0)
    for angles in rays.values():
        gaps = np.diff(np.sort([*angles, min(angles) + 360.0]))
        assert gaps.min() > 2.0


def test_edge_colors_are_distinct_and_depend_on_the_set_alone():
    for num_nodes in (5, 6, 20):
        edges = plotting.lower_triangle_edges(num_nodes)
        colors = plotting.edge_colors(edges)
        assert len(set(colors.values())) == len(edges)
        assert plotting.edge_colors(edges[::-1]) == colors
    assert len(plotting.lower_triangle_edges(20)) == 190
    assert plotting.edge_colors([]) == {}


@pytest.mark.parametrize("num_nodes", [1, 3, 7, 20])
def test_nothing_is_drawn_outside_the_picture(num_nodes):
    figure = plotting.draw_structure(random_probabilities(num_nodes))
    FigureCanvasAgg(figure).draw()
    width, height = figure.canvas.get_width_height()
    for artist in [*figure.axes[0].patches, *figure.axes[0].texts]:
        box = artist.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


# trajectories


@pytest.mark.parametrize("num_nodes", [2, 5, 8, 20])
def test_trajectories_are_the_given_numbers_in_the_colours_of_the_structure(num_nodes):
    edges = plotting.lower_triangle_edges(num_nodes)
    steps = np.arange(0, 50, 10)
    probabilities = np.random.default_rng(17).uniform(size=[5, len(edges)])
    figure = plotting.draw_gate_trajectories(steps, probabilities, edges)
    lines = figure.axes[0].lines
    colors = plotting.edge_colors(edges)
    assert len(lines) == len(edges)
    for index, (edge, line) in enumerate(zip(edges, lines, strict=True)):
        np.testing.assert_array_equal(line.get_xdata(), steps)
        np.testing.assert_array_equal(line.get_ydata(), probabilities[:, index])
        assert to_rgba(line.get_color()) == to_rgba(colors[edge])
    legend = figure.axes[0].get_legend()
    if len(edges) > 30:
        assert legend is None
        return
    named = [text.get_text() for text in legend.get_texts()]
    assert named == [f"z{parent + 1} → z{child + 1}" for child, parent in edges]
    FigureCanvasAgg(figure).draw()
    assert legend.get_window_extent().x1 <= figure.canvas.get_width_height()[0]
    assert legend.get_window_extent().y0 >= 0


def test_trajectories_break_where_the_gates_were_fixed():
    values = np.array([[0.5], [0.6], [1.0], [1.0]])
    line, mark = plotting.draw_gate_trajectories([10, 20, 30, 40], values, [(1, 0)], phase_start=20).axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [10, 20, 20, 30, 40])
    np.testing.assert_array_equal(line.get_ydata(), [0.5, 0.6, np.nan, 1.0, 1.0])
    assert list(mark.get_xdata()) == [20, 20]


def test_trajectories_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[T, 2\] for 2 edges, found \[3\] and \[3, 1\]"):
        plotting.draw_gate_trajectories(np.arange(3), np.zeros([3, 1]), [(1, 0), (2, 0)])


# images


def shown(figure):
    (image,) = figure.axes[0].images
    return np.asarray(image.get_array())


@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 5, 4, 1), (7, 5, 4, 3)])
def test_grid_shows_exactly_the_images_row_by_row(shape):
    images = np.random.default_rng(17).uniform(size=shape)
    picture = shown(plotting.draw_grid(images, columns=3))
    assert picture.shape == (3 * 6 - 1, 3 * 5 - 1, 3)
    for index, image in enumerate(images.reshape(7, 5, 4, -1)):
        top, left = 6 * (index // 3), 5 * (index % 3)
        np.testing.assert_array_equal(picture[top : top + 5, left : left + 4], np.broadcast_to(image, [5, 4, 3]))
    assert np.all(picture[5] == 0.5)  # gaps
    assert np.all(picture[:, 4] == 0.5)
    assert np.all(picture[12:, 5:9] == 1.0)  # places without an image
    assert np.all(picture[12:, 10:] == 1.0)


def test_saved_grid_has_the_images_pixel_for_pixel(tmp_path):
    images = np.random.default_rng(17).integers(0, 256, size=[4, 28, 28]) / 255.0
    path = plotting.save(plotting.draw_grid(images), tmp_path / "new" / "grid.png")
    picture = matplotlib.image.imread(path)
    assert picture.shape == (57 * 8, 57 * 8, 4)
    np.testing.assert_allclose(picture[:, :, 0].reshape(57, 8, 57, 8).std(axis=(1, 3)), 0.0, atol=1e-6)
    np.testing.assert_allclose(picture[4::8, 4::8, 1][29:, :28], images[2], atol=1e-6)


def test_reconstructions_stand_below_their_originals():
    originals = np.random.default_rng(17).uniform(size=[5, 4, 4])
    reconstructions = 1.0 - originals
    figure = plotting.draw_reconstructions(originals, reconstructions, columns=3)
    picture = shown(figure)[..., 0]
    assert picture.shape == (4 * 5 - 1, 3 * 5 - 1)
    for index in range(5):
        top, left = 10 * (index // 3), 5 * (index % 3)
        np.testing.assert_array_equal(picture[top : top + 4, left : left + 4], originals[index])
        np.testing.assert_array_equal(picture[top + 5 : top + 9, left : left + 4], reconstructions[index])
    assert [text.get_text() for text in figure.texts] == ["original", "reconstruction"] * 2
    heights = [text.get_position()[1] for text in figure.texts]
    np.testing.assert_allclose(heights, 1.0 - (np.arange(4) * 5 + 2) / 19)
    FigureCanvasAgg(figure).draw()
    edge = figure.axes[0].get_window_extent().x0
    for text in figure.texts:
        assert text.get_window_extent().x0 >= 0
        assert text.get_window_extent().x1 <= edge


@pytest.mark.parametrize("shape", [(5, 16), (5, 4, 4, 2), (4,), (0, 4, 4)])
def test_what_is_no_image_is_refused_with_both_shapes(shape):
    pattern = r"must be images of shape \[n, h, w\].*found shape " + re.escape(str(list(shape)))
    with pytest.raises(ValueError, match=pattern):
        plotting.draw_grid(np.zeros(shape))
    with pytest.raises(ValueError, match=pattern):
        plotting.draw_reconstructions(np.zeros(shape), np.zeros(shape))


def test_values_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match="images must lie in .* from 0.0 to 255.0"):
        plotting.draw_grid(np.array([[[0, 255]]], np.uint8))
    with pytest.raises(ValueError, match="nan"):
        plotting.draw_grid(np.full([1, 2, 2], np.nan))
    with pytest.raises(ValueError, match=r"same shape, found \[2, 4, 4\] and \[1, 4, 4\]"):
        plotting.draw_reconstructions(np.zeros([2, 4, 4]), np.zeros([1, 4, 4]))
    for columns in (0, -1):
        with pytest.raises(ValueError, match="columns"):
            plotting.draw_grid(np.zeros([1, 4, 4]), columns=columns)


# files


def test_the_same_figure_has_the_same_bytes(tmp_path):
    for kind in ("svg", "png"):
        first, again = (
            plotting.save(plotting.draw_scores({"a": np.arange(9.0)}), tmp_path / f"{n}.{kind}") for n in (1, 2)
        )
        assert first.read_bytes() == again.read_bytes()


def test_save_is_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = plotting.draw_grid(np.zeros([1, 2, 2]))
    path = tmp_path / "grid.png"
    plotting.save(figure, path)
    before = path.read_bytes()

    def torn(target, **_):
        target.write(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", torn)
    with pytest.raises(OSError, match="disk full"):
        plotting.save(figure, path)
    with pytest.raises(ValueError, match="grid.picture: unknown kind of picture '.picture'"):
        plotting.save(figure, tmp_path / "grid.picture")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["grid.png"]


def test_pictures_need_neither_pyplot_nor_a_display():
    program = (
        "import sys, numpy; from tfstruct import plotting; plotting.draw_structure(numpy.zeros([3, 3]));"
        "plotting.draw_grid(numpy.zeros([1, 2, 2])); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
