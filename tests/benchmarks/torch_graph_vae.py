"""The Graph VAE as one would write it in PyTorch: `tfstruct-benchmark --import=tests.benchmarks.torch_graph_vae`.

Modules, torch.optim.Adam in its fused form, rows resident on the device; eager, with torch.compile, and on a GPU with
the whole step in one CUDA graph. It needs `pip install torch`, which the project does not.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tfstruct.benchmarks.training import register_rival
from tfstruct.distributions import adjacency as adjacency_lib

_ACTIVATIONS = {"relu": nn.ReLU, "elu": nn.ELU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}


def network(sizes, activation, options, *, output=None, output_bias=True):
    """Blocks of product, batch normalisation and activation, and a last product."""
    layers = []
    for width_in, width in zip(sizes[:-1], sizes[1:], strict=True):
        layers.append(nn.Linear(width_in, width, bias=not options.batch_norm))
        if options.batch_norm:
            momentum = 1.0 - options.batch_norm_momentum
            layers.append(nn.BatchNorm1d(width, eps=options.batch_norm_epsilon, momentum=momentum))
        layers.append(_ACTIVATIONS[activation]())
    if output is not None:
        layers.append(nn.Linear(sizes[-1], output, bias=output_bias))
    return nn.Sequential(*layers)


class Heads(nn.Module):
    """Hidden features of nodes [B, G, H] to loc and log variance [B, G, D]."""

    def __init__(self, groups, hidden, dim):
        super().__init__()
        self.first = nn.Parameter(torch.empty(groups, hidden, dim).uniform_(-1, 1) / math.sqrt(hidden))
        self.first_bias = nn.Parameter(torch.zeros(groups, dim))
        self.second = nn.Parameter(torch.empty(groups, dim, 2 * dim).uniform_(-1, 1) / math.sqrt(dim))
        self.second_bias = nn.Parameter(torch.zeros(groups, 2 * dim))

    def forward(self, hidden):
        projected = torch.einsum("bgi,gio->bgo", hidden, self.first) + self.first_bias
        return (torch.einsum("bgi,gio->bgo", projected, self.second) + self.second_bias).chunk(2, dim=-1)


class TopDown(nn.Module):
    """The gated parents of a node [B, P * D] to its loc and log variance [B, D]."""

    def __init__(self, parents, dim, hidden, options):
        super().__init__()
        self.block = network([parents * dim, hidden], options.activation, options)
        self.heads = Heads(1, hidden, dim)

    def forward(self, values):
        loc, log_variance = self.heads(self.block(values)[:, None])
        return loc[:, 0], log_variance[:, 0]


class GraphVAE(nn.Module):
    """The model of a tfstruct config of the Graph VAE family with a Bernoulli likelihood."""

    def __init__(self, config):
        super().__init__()
        options = config.model
        self.nodes, self.dim = options.num_nodes, options.num_latents // options.num_nodes
        adjacency = adjacency_lib.from_structure(options.structure, self.nodes)
        self.parents = [tuple(int(parent) for parent in np.flatnonzero(row)) for row in adjacency]
        self.edges = adjacency_lib.edges(adjacency)
        dims = math.prod(config.data.event_shape)
        self.encoder = network(
            [dims, *options.encoder_units],
            options.encoder_activation,
            options,
            output=options.feature_units,
            output_bias=not options.batch_norm,
        )
        hidden = options.bottom_up_units
        self.bottom_up = network([options.feature_units, self.nodes * hidden], options.activation, options)
        self.bottom_up_heads = Heads(self.nodes, hidden, self.dim)
        top_down = lambda: nn.ModuleDict(  # noqa: E731
            {
                str(node): TopDown(len(parents), self.dim, options.top_down_units, options)
                for node, parents in enumerate(self.parents)
                if parents
            }
        )
        self.posterior_top_down, self.prior_top_down = top_down(), top_down()
        self.decoder = network([options.num_latents, *options.decoder_units], options.activation, options, output=dims)
        self.logits = nn.Parameter(torch.zeros(len(self.edges))) if options.structure == "learned" else None

    def relaxed_gates(self, temperature):
        if self.logits is None:
            return torch.ones(len(self.edges), device=temperature.device)
        uniform = torch.rand_like(self.logits).clamp(1e-7, 1 - 1e-7)
        return torch.sigmoid((self.logits + torch.logit(uniform)) / temperature)

    def forward(self, x, gates, noise):
        """Mean log p(x | z) and mean log q(z | x) - log p(z) of x [B, dims], gates [E] and noise [B, N, D]."""
        gate = {edge: gates[place] for place, edge in enumerate(self.edges)}
        hidden = self.bottom_up(self.encoder(x)).unflatten(-1, (self.nodes, -1))
        locs, log_variances = self.bottom_up_heads(hidden)
        values, rate = [], 0.0
        for node, parents in enumerate(self.parents):
            loc, log_variance = locs[:, node], log_variances[:, node]
            if parents:
                inputs = torch.cat([gate[node, parent] * values[parent] for parent in parents], dim=-1)
                top_loc, top_log_variance = self.posterior_top_down[str(node)](inputs)
                difference = log_variance - top_log_variance
                loc = top_loc + torch.sigmoid(-difference) * (loc - top_loc)
                log_variance = log_variance - F.softplus(difference)
                prior_loc, prior_log_variance = self.prior_top_down[str(node)](inputs)
            else:
                prior_loc, prior_log_variance = 0.0, torch.zeros_like(log_variance)
            value = loc + torch.exp(0.5 * log_variance) * noise[:, node]
            values.append(value)
            squared = (value - prior_loc) ** 2 * torch.exp(-prior_log_variance)
            rate = rate + 0.5 * (squared + prior_log_variance - noise[:, node] ** 2 - log_variance).sum(-1)
        logits = self.decoder(torch.cat(values, dim=-1))
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        return -distortion.mean(), rate.mean()


def supports(config):
    """Whether the model above is the config's."""
    if config.system != "graph_vae" or config.model.likelihood != "bernoulli":
        return False
    model, objective = config.model, config.objective
    plain = not (model.flow.steps or model.layer_norm or model.share_top_down or model.straight_through)
    simple = not (model.log_variance_bound or objective.free_bits or len(model.adjacency) or config.optimizer.clip_norm)
    simple = simple and objective.num_samples == 1 and config.training.precision == "float32"
    simple = simple and not (config.data.corruption or config.optimizer.weight_decay or config.optimizer.ema_momentum)
    known = {model.activation, model.encoder_activation} <= _ACTIVATIONS.keys()
    return plain and simple and known and (objective.name, objective.gradient) == ("elbo", "plain")


def make_rounds(config, data, steps, *, compiled=False, captured=False):
    """Returns what trains `steps` steps; the order of visits and the binarisation are drawn on the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model, batch = GraphVAE(config).to(device), config.training.batch_size
    rows = torch.from_numpy(np.array(data.train)).reshape(len(data.train), -1).to(device)
    options, temperature = config.optimizer, torch.tensor(0.5, device=device)
    optimizer = torch.optim.Adam(
        model.parameters(),
        options.learning_rate,
        (options.beta_1, options.beta_2),
        options.epsilon,
        fused=True,
        capturable=captured,
    )
    loss_of = torch.compile(model) if compiled else model

    def step(chosen):
        x = rows[chosen].float()
        if data.train_transform == "binarize":
            x = (torch.rand_like(x) * 255.0 < x).float()
        optimizer.zero_grad(set_to_none=True)
        noise = torch.randn(batch, model.nodes, model.dim, device=device)
        log_likelihood, rate = loss_of(x, model.relaxed_gates(temperature), noise)
        (rate - log_likelihood).backward()
        optimizer.step()
        return log_likelihood.detach()

    if captured:  # the whole step, replayed with other rows
        places = torch.arange(batch, device=device)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                step(places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step(places)

    def run():
        order = torch.randperm(len(rows), device=device)
        for place in range(steps):
            start = place * batch % (len(rows) - batch + 1)
            chosen = order[start : start + batch]
            if captured:
                places.copy_(chosen)
                graph.replay()
            else:
                last = step(chosen)
        return float(found if captured else last)

    return run


def _rival(**options):
    return lambda config, data, steps: (
        (lambda: make_rounds(config, data, steps, **options)) if supports(config) else None
    )


register_rival("PyTorch, eager", _rival())
register_rival("PyTorch, torch.compile", _rival(compiled=True))
if torch.cuda.is_available():
    register_rival("PyTorch, one CUDA graph", _rival(captured=True))
