"""Latent dependency graphs as pictures and as Graphviz text.

Entry [i, j] of `edge_probabilities` is the probability of the edge from parent j to child i. Children come
after their parents, so only the part below the diagonal is used; node 0 is the root. Pictures call node i
`z<i+1>`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path

from tfstruct.plotting import style

Edge = tuple[int, int]
Color = tuple[float, float, float, float]

_RADIUS = 0.27  # of a node; nodes are one unit apart
_MOST_LABELLED_NODES = 7  # beyond that the probabilities would cover the arcs


def lower_triangle_edges(num_nodes: int) -> list[Edge]:
    """Returns all possible edges of `num_nodes` ordered nodes as (child, parent), children ascending."""
    return [(child, parent) for child in range(num_nodes) for parent in range(child)]


def edge_colors(edges: Sequence[Edge]) -> dict[Edge, Color]:
    """Returns one colour per edge, the same one for the same set of edges in any order.

    Up to ten edges get colours that differ, more get shades from dark to light in the order of (child, parent).

    Args:
        edges: distinct (child, parent) pairs.

    Returns:
        Red, green, blue and opacity in [0, 1], by edge, in the order given.
    """
    ordered = sorted(edges)
    shades = (to_rgba(shade) for shade in style.ordered_colors(len(ordered)))
    colors = dict(zip(ordered, shades, strict=True))
    return {edge: colors[edge] for edge in edges}


def _checked(edge_probabilities: Any) -> np.ndarray:
    probabilities = np.asarray(edge_probabilities, np.float64)
    if probabilities.ndim != 2 or probabilities.shape[0] != probabilities.shape[1] or not probabilities.size:
        raise ValueError(f"edge_probabilities must have shape [N, N], found {list(probabilities.shape)}")
    if not np.all((probabilities >= 0.0) & (probabilities <= 1.0)):
        low, high = probabilities.min(), probabilities.max()
        raise ValueError(f"edge_probabilities must lie in [0, 1], found values from {low} to {high}")
    if np.any(np.triu(probabilities)):
        child, parent = np.argwhere(np.triu(probabilities))[0]
        raise ValueError(
            "edge_probabilities must be zero on and above the diagonal (children come after their parents), "
            f"found {probabilities[child, parent]} for the edge from node {parent} to node {child}"
        )
    return probabilities


def _is_shown(probability: float, threshold: float, show_closed: bool) -> bool:
    """Open edges always; closed ones if asked for, except those that cannot be (probability exactly 0)."""
    return probability >= threshold or (show_closed and probability > 0.0)


def to_dot(
    edge_probabilities: Any,
    node_dims: Sequence[int] | None = None,
    *,
    threshold: float = 0.5,
    show_closed: bool = True,
    show_observed: bool = True,
) -> str:
    """Returns a dependency graph in Graphviz's DOT language.

    Args:
        edge_probabilities: [N, N], probability at [i, j] of the edge from parent j to child i.
        node_dims: [N], dimensions of each node's latent, added to its label.
        threshold: edges at least this probable are open and drawn solid.
        show_closed: whether the other edges are there, dashed and grey; not those of probability exactly 0,
            which stand for edges that the structure does not have.
        show_observed: whether the observed node `x` is there, at the bottom, a child of every node.

    Raises:
        ValueError: a matrix of another shape, probabilities outside [0, 1] or on or above the diagonal, or
            another number of `node_dims`.

    Examples:
        >>> print(to_dot([[0.0, 0.0], [0.9, 0.0]], show_observed=False))
        digraph structure {
          rankdir=TB;
          node [shape=circle];
          z1 [label="z1"];
          z2 [label="z2"];
          z1 -> z2 [label="0.90", style=solid];
        }
        <BLANKLINE>
    """
    probabilities = _checked(edge_probabilities)
    num_nodes = len(probabilities)
    if node_dims is not None and len(node_dims) != num_nodes:
        raise ValueError(f"node_dims must have {num_nodes} entries, one per node, found {len(node_dims)}")
    lines = ["digraph structure {", "  rankdir=TB;", "  node [shape=circle];"]
    for node in range(num_nodes):
        dims = "" if node_dims is None else f" ({int(node_dims[node])})"
        lines.append(f'  z{node + 1} [label="z{node + 1}{dims}"];')
    for child, parent in lower_triangle_edges(num_nodes):
        probability = probabilities[child, parent]
        is_open = probability >= threshold
        if _is_shown(probability, threshold, show_closed):
            style = "style=solid" if is_open else 'style=dashed, color="gray60", fontcolor="gray60"'
            lines.append(f'  z{parent + 1} -> z{child + 1} [label="{probability:.2f}", {style}];')
    if show_observed:
        lines.append('  x [label="x", style=filled, fillcolor="gray90"];')
        lines.append("  { rank=sink; x; }")
        lines += [f"  z{node + 1} -> x [style=solid];" for node in range(num_nodes)]
    return "\n".join([*lines, "}", ""])


def _edge_path(child: int, parent: int, num_nodes: int) -> Path:
    """Returns the line from the rim of the parent to the rim of the child.

    Node i is at (0, -i). Neighbours are joined by a straight line, all others by an arc that leaves the
    column of nodes and comes back, even distances on the right and odd ones on the left. Longer arcs leave at
    a wider angle and reach further out, so no two arcs coincide, not even close to a node they share, and
    none touches a third node.
    """
    distance = child - parent
    start, end = np.array([0.0, -parent]), np.array([0.0, -child])
    if distance == 1:
        down = np.array([0.0, -_RADIUS])
        return Path([start + down, end - down], [Path.MOVETO, Path.LINETO])
    side = 1.0 if distance % 2 == 0 else -1.0
    longest = max(num_nodes - 1, 8)
    angle = np.deg2rad(57.0 + 50.0 * (distance - 2) / (longest - 2))  # between the arc and the column
    # An arc gets three quarters as far from the column as its inner control points.
    reach = (0.72 + 0.36 * (distance - 2)) / 0.75 / np.sin(angle)
    leaving = np.array([side * np.sin(angle), -np.cos(angle)])
    arriving = leaving * [1.0, -1.0]
    points = [
        start + _RADIUS * leaving,
        start + reach * leaving,
        end + reach * arriving,
        end + _RADIUS * arriving,
    ]
    return Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])


def _middle(path: Path) -> np.ndarray:
    vertices = np.asarray(path.vertices)
    weights = [0.5, 0.5] if len(vertices) == 2 else [0.125, 0.375, 0.375, 0.125]
    return np.asarray(weights) @ vertices


def _extent(paths: Sequence[Path]) -> tuple[float, float]:
    """Returns how far the lines reach to the left and to the right of the nodes."""
    boxes = [path.get_extents() for path in paths]
    left = min([-_RADIUS, *(box.x0 for box in boxes)])
    right = max([_RADIUS, *(box.x1 for box in boxes)])
    return left - 0.3, right + 0.3


def _draw_node(axes: Axes, height: float, name: str, color: str) -> None:
    axes.add_patch(Circle((0.0, height), _RADIUS, facecolor=color, edgecolor="black", linewidth=1.0, zorder=4))
    axes.text(0.0, height, name, ha="center", va="center", fontsize=10, zorder=5)


@style.styled
def draw_structure(
    edge_probabilities: Any,
    *,
    threshold: float = 0.5,
    show_closed: bool = True,
    show_observed: bool = True,
    colors: dict[Edge, Color] | None = None,
    decided: float = 0.5,
) -> Figure:
    """Draws a dependency graph with the root on top.

    Open edges are arrows, wider and more opaque the more probable; closed ones are thin dotted grey lines. Edges that
    are undecided are dashed, in their colours. With at most 7 nodes each edge carries its probability. The observed
    node hangs from the frame around the latent nodes, because every one of them feeds it.

    Args:
        edge_probabilities: [N, N], probability at [i, j] of the edge from parent j to child i.
        threshold: edges at least this probable are open.
        show_closed: whether closed edges are drawn; not those of probability exactly 0, which stand for edges
            that the structure does not have.
        show_observed: whether the observed node `x` is drawn.
        colors: colour by (child, parent); by default `edge_colors` of all possible edges, which are also the
            colours of `draw_gate_trajectories` for the same edges.
        decided: an edge whose probability is further than this from 0 and from 1 is undecided; 0.5: none is.

    Returns:
        The figure. The artist of an edge has the group id `open:<child>:<parent>` or `closed:...`.

    Raises:
        ValueError: a matrix of another shape, or probabilities outside [0, 1] or on or above the diagonal.
    """
    probabilities = _checked(edge_probabilities)
    num_nodes = len(probabilities)
    edges = lower_triangle_edges(num_nodes)
    colors = edge_colors(edges) if colors is None else colors
    drawn = [edge for edge in edges if _is_shown(probabilities[edge], threshold, show_closed)]
    paths = {edge: _edge_path(*edge, num_nodes) for edge in drawn}
    left, right = _extent(list(paths.values()))
    bottom = -(num_nodes - 1) - 0.6
    lowest = bottom - 1.3 if show_observed else bottom - 0.1
    scale = 0.75 if num_nodes <= _MOST_LABELLED_NODES else 0.55  # inches per unit
    figure = Figure(figsize=(scale * (right - left + 0.3), scale * (0.7 - lowest)))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(left - 0.15, right + 0.15), ylim=(lowest, 0.7))
    axes.set_axis_off()
    for edge, path in paths.items():
        probability = probabilities[edge]
        is_open, is_undecided = probability >= threshold, min(probability, 1.0 - probability) > decided
        _draw_edge(axes, edge, path, probability, colors[edge], is_open=is_open, is_undecided=is_undecided)
        if num_nodes <= _MOST_LABELLED_NODES:
            _draw_label(axes, edge, path, probability, is_open=is_open)
    for node in range(num_nodes):
        _draw_node(axes, -float(node), f"z{node + 1}", "white")
    if show_observed:
        frame = FancyBboxPatch((left, bottom), right - left, 0.6 - bottom, boxstyle="round,pad=0,rounding_size=0.2")
        frame.set(facecolor="none", edgecolor="0.45", linewidth=0.9)
        axes.add_patch(frame)
        points = [(0.0, bottom), (0.0, bottom - 0.85 + _RADIUS)]
        arrow = FancyArrowPatch(*points, arrowstyle="-|>", mutation_scale=11, shrinkA=0, shrinkB=0, color="0.3")
        arrow.set_gid("observed")
        axes.add_patch(arrow)
        _draw_node(axes, bottom - 0.85, "x", "0.85")
    return figure


def _draw_edge(
    axes: Axes, edge: Edge, path: Path, probability: float, color: Color, *, is_open: bool, is_undecided: bool
) -> None:
    if is_open:
        patch = FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=11, color=color, zorder=3)
        patch.set(linewidth=0.6 + 1.6 * probability, alpha=0.3 + 0.7 * probability)
    elif is_undecided:
        patch = PathPatch(path, facecolor="none", edgecolor=color, zorder=2)
        patch.set(linewidth=0.6 + 1.6 * probability, alpha=0.3 + 0.7 * probability)
    else:
        patch = PathPatch(path, facecolor="none", edgecolor="0.75", zorder=2)
        patch.set(linewidth=0.6, linestyle=(0, (1, 3)))
    if is_undecided:
        patch.set_linestyle((0, (4, 2)))
    patch.set_gid(f"{'open' if is_open else 'closed'}:{edge[0]}:{edge[1]}")
    axes.add_patch(patch)


def _draw_label(axes: Axes, edge: Edge, path: Path, probability: float, *, is_open: bool) -> None:
    x, y = _middle(path)
    background = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    label = axes.text(x, y, f"{probability:.2f}", ha="center", va="center", fontsize=8, bbox=background, zorder=3.5)
    label.set_color("black" if is_open else "0.45")
    label.set_gid(f"label:{edge[0]}:{edge[1]}")
