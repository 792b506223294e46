"""Pictures of structures, training and samples (matplotlib).

Every function returns a `matplotlib.figure.Figure` of its own and leaves pyplot alone, so nothing needs a
display and no figure outlives its last reference. Arguments are NumPy arrays or convert to them.
"""

from tfstruct.plotting.curves import draw_curves, draw_runs
from tfstruct.plotting.figures import save
from tfstruct.plotting.images import draw_grid, draw_reconstructions
from tfstruct.plotting.rows import draw_active_units, draw_latent_map, draw_means, draw_scores
from tfstruct.plotting.structure import draw_structure, edge_colors, lower_triangle_edges, to_dot
from tfstruct.plotting.tables import Point, draw_table
from tfstruct.plotting.trajectories import draw_gate_trajectories

__all__ = [
    "Point",
    "draw_active_units",
    "draw_curves",
    "draw_gate_trajectories",
    "draw_grid",
    "draw_latent_map",
    "draw_means",
    "draw_reconstructions",
    "draw_runs",
    "draw_scores",
    "draw_structure",
    "draw_table",
    "edge_colors",
    "lower_triangle_edges",
    "save",
    "to_dot",
]
