"""The questions that an exported model answers, asked in the same way of one in this process and of a server.

A question is checked and cut into requests of a few rows (`Request`) before anything computes, and the answers to those
are joined (`join`). Between the two stands all that differs: a graph in this process, or a connection.
"""

import abc
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from tfstruct import progress
from tfstruct.registry import did_you_mean
from tfstruct.serving.inputs import checked_images, checked_rates, checked_seeds, parts, row_seeds

Answers = TypeVar("Answers")  # outputs by name, or what is awaited for them
Values = TypeVar("Values")  # one output, or what is awaited for it


class Request(NamedTuple):
    """A checked question to a signature.

    Attributes:
        signature: its name.
        chunks: inputs by name, each [n, ...] with n at most the batch size; the rows of all chunks in their order.
    """

    signature: str
    chunks: list[dict[str, np.ndarray]]


def join(results: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the outputs of the chunks of one request as one, each [N, ...]."""
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


class Questions(abc.ABC, Generic[Answers, Values]):
    """The signatures of an exported model as methods on NumPy arrays, whoever answers, and whether that is awaited.

    A row's answer depends on the row and its seed alone. A single integer seed is given to every row when scoring:
    equal rows then get equal scores wherever they stand, but the rows share one noise, and so do the errors of their
    scores. For an average over many rows give each a seed of its own: `seed=row_seeds(0, len(x))`. Sampling does so.

    Attributes:
        card: what is known of the model: data, config, metrics, versions.
    """

    card: dict[str, Any]

    @abc.abstractmethod
    def _ask(self, request: Request) -> Answers:
        """Returns the joined answers to a checked question."""

    @abc.abstractmethod
    def _only(self, answers: Answers, name: str) -> Values:
        """Returns one of several outputs."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return tuple(self.card["event_shape"])

    @property
    def observation_scale(self) -> float:
        """What observations are divided by to lie in [0, 1]: 255 of grey levels.

        Raises:
            ValueError: a model on a server that has not told its support.
        """
        if self.card["support"] is None:
            raise ValueError(f"the support of {self.card['preset']} is not known; connect with its card")
        return 255.0 if self.card["support"] == "integers_0_255" else 1.0

    @property
    def is_conditional(self) -> bool:
        """Whether it is a model of one part of an observation given the other: log p(x_2 | x_1)."""
        return bool(self.card.get("part_shapes"))

    def parts(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Cuts observations [N, *event_shape] of a conditional model into x_1, which is given, and x_2.

        Raises:
            ValueError: a model that is not conditional, or observations of another shape or outside the support.
        """
        self._require_conditional()
        x, first = self._observations(x), self.card["part_shapes"][0][0]
        return x[:, :first], x[:, first:]

    def _require_conditional(self) -> None:
        if not self.is_conditional:
            raise ValueError(f"{self.card['preset']} is no conditional model: it has no parts of an observation")

    def conditional_log_prob(self, x_given: Any, x_query: Any, *, seed: Any = 0, batch_size: int = 100) -> Answers:
        """Estimates log p(x_query | x_given); `log_prob` and `std_err` in nats, each [N].

        Args:
            x_given: [N, ...] of the first of the card's `part_shapes`.
            x_query: [N, ...] of the second.
            seed: as in `log_prob`.
            batch_size: rows computed at once.

        Raises:
            ValueError: a model that is not conditional, or parts of other shapes or outside the support.
        """
        self._require_conditional()
        return self.query("conditional_log_prob", x_given=x_given, x_query=x_query, seed=seed, batch_size=batch_size)

    def query(self, name: str, *, batch_size: int = 100, **inputs: Any) -> Answers:
        """Asks a signature by its name, also one that only the model's system has.

        Args:
            name: one of the card's `signatures`.
            batch_size: rows computed at once.
            **inputs: those of the signature, each [N, ...]; `seed` may be one integer where there are others.

        Returns:
            Its outputs by name, each [N, ...].

        Raises:
            ValueError: no such signature, other inputs than it takes, or observations as in `log_prob`.
        """
        signatures = self.card["signatures"]
        if name not in signatures:
            raise ValueError(f"{self.card['preset']} has no signature {name!r}{did_you_mean(name, signatures)}")
        expected = signatures[name]["inputs"]
        if inputs.keys() != expected.keys():
            raise ValueError(f"{name} takes {', '.join(expected)}, found {', '.join(inputs) or 'nothing'}")
        seed = inputs.pop("seed", None)
        if "seed" in expected and (seed is None or (not inputs and (np.ndim(seed) != 1 or not np.size(seed)))):
            raise ValueError(f"seed must be an integer, or integers [N] where it is the only input, found {seed!r}")
        if "observed" in inputs:
            inputs["x"], inputs["observed"] = self._partly_observed(inputs["x"], inputs["observed"])
        elif "x" in inputs:
            inputs["x"] = self._observations(inputs["x"])
        elif "image_bytes" in inputs:
            inputs["image_bytes"] = checked_images(inputs["image_bytes"], are_decoded=bool(self.card.get("image")))
        elif "x_given" in inputs:
            parts = [np.asarray(inputs[part]) for part in ("x_given", "x_query")]
            if [list(part.shape[1:]) for part in parts] != self.card["part_shapes"] or len(parts[0]) != len(parts[1]):
                raise ValueError(
                    f"x_given and x_query must have shapes [N, ...] of {self.card['part_shapes']}, found "
                    f"{list(parts[0].shape)} and {list(parts[1].shape)}"
                )
            inputs["x_given"], inputs["x_query"] = self.parts(np.concatenate(parts, axis=1))
        return self._ask(_request(name, seed, batch_size, inputs))

    def log_prob(self, x: Any, *, seed: Any = 0, batch_size: int = 100) -> Answers:
        """Estimates log p(x), of a conditional model log p(x_2 | x_1), with the importance samples fixed at export.

        Args:
            x: [N, *event_shape], values as the card's `support` says.
            seed: one integer, or one for each row [N].
            batch_size: rows computed at once.

        Returns:
            `log_prob` and `std_err` in nats, and `bits_per_dim`; each [N].

        Raises:
            ValueError: observations of another shape or outside the model's support.
        """
        return self.query("log_prob", x=x, seed=seed, batch_size=batch_size)

    def image_log_prob(self, images: Sequence[bytes], *, seed: Any = 0, batch_size: int = 100) -> Answers:
        """The same of encoded images, which are decoded, resized and scaled as the card's `image` says.

        Args:
            images: PNG or JPEG files, N of them.
            seed: as in `log_prob`; where pixels are binarised they are drawn by it too.
            batch_size: images computed at once.

        Raises:
            ValueError: a model that takes no images, or values that are not bytes.
        """
        return self.query("image_log_prob", image_bytes=images, seed=seed, batch_size=batch_size)

    def elbo(self, x: Any, *, seed: Any = 0, batch_size: int = 100) -> Answers:
        """Returns `elbo`, `rate` and `distortion` in nats, each [N]; arguments as in `log_prob`."""
        return self.query("elbo", x=x, seed=seed, batch_size=batch_size)

    def encode(self, x: Any, *, batch_size: int = 100) -> Answers:
        """Returns `z_mean` and `z_std`, each [N, M]."""
        return self.query("encode", x=x, batch_size=batch_size)

    def reconstruct(self, x: Any, *, seed: Any = 0, batch_size: int = 100) -> Values:
        """Returns the mean of p(x | z) at one posterior draw, [N, *event_shape]."""
        return self._only(self.query("reconstruct", x=x, seed=seed, batch_size=batch_size), "x_mean")

    def sample(self, num: int, *, seed: Any = 0, batch_size: int = 100) -> Answers:
        """Draws `num` observations: `x_mean` and `x`, each [num, *event_shape].

        Args:
            num: how many.
            seed: one integer, of which a seed for each draw is derived, or those seeds themselves, [num].
            batch_size: draws computed at once.

        Raises:
            ValueError: num below 1, seeds of another shape, or a conditional model, which draws no whole observations.
        """
        if self.is_conditional:
            raise ValueError(f"{self.card['preset']} models {self.card['target']}; reconstruct completes observations")
        if not isinstance(num, (int, np.integer)) or num < 1:
            raise ValueError(f"num must be an integer of at least 1, found {num!r}")
        seeds = checked_seeds(seed, num)
        seeds = row_seeds(int(seeds), num) if seeds.ndim == 0 else seeds
        return self._ask(_request("sample", seeds, batch_size, {}))

    def anomaly(self, x: Any, *, alpha: Any = 0.05, seed: Any = 0, batch_size: int = 100) -> Answers:
        """Says how unusual observations are, and whether that is an anomaly; of a calibrated model.

        Args:
            x: as in `log_prob`.
            alpha: the false-alarm rate, in [0, 1]: the part of normal observations that are taken for anomalies. One
                number, or one for each row [N].
            seed: as in `log_prob`.
            batch_size: rows computed at once.

        Returns:
            `p_value`, the part of normal observations that are as unusual, `is_anomaly`: whether it is at most alpha,
            and by score what the card's `calibration` has: `<score>_p_value` and `<score>_score` (nats, low where
            unusual; of the likelihood `log_prob`); each [N]. `region_p_value` [N, R] of the card's `leaf_regions`.

        Raises:
            ValueError: a model that is not calibrated, observations as in `log_prob`, or another alpha.
        """
        return self.query("anomaly", x=x, alpha=self._rates(alpha, x), seed=seed, batch_size=batch_size)

    def image_anomaly(
        self, images: Sequence[bytes], *, alpha: Any = 0.05, seed: Any = 0, batch_size: int = 100
    ) -> Answers:
        """The same of encoded images; see `image_log_prob`."""
        alpha = self._rates(alpha, images)
        return self.query("image_anomaly", image_bytes=images, alpha=alpha, seed=seed, batch_size=batch_size)

    def _rates(self, alpha: Any, rows: Any) -> np.ndarray:
        if "anomaly" not in self.card["signatures"]:
            raise ValueError(f"{self.card['preset']} is not calibrated for anomalies; tfstruct-calibrate does that")
        return checked_rates(alpha, rows)

    @property
    def allows_missing(self) -> bool:
        """Whether parts of an observation may be missing: `marginal_log_prob`, `inpaint`."""
        return "inpaint" in self.card["signatures"]

    @property
    def has_regions(self) -> bool:
        """Whether the log density has parts that belong to regions of an observation: `region_log_prob`."""
        return "region_log_prob" in self.card["signatures"]

    def marginal_log_prob(self, x: Any, observed: Any, *, seed: Any = 0, batch_size: int = 100) -> Answers:
        """Estimates the log density of the observed values: `log_prob` and `std_err` in nats, each [N].

        Args:
            x: [N, *event_shape]; missing values may be anything, NaN too.
            observed: Boolean, of the shape of x or of one observation.
            seed: as in `log_prob`.
            batch_size: rows computed at once.

        Raises:
            ValueError: a model without this, a mask of another shape or type, or observed values outside the support.
        """
        self._require_missing()
        return self.query("marginal_log_prob", x=x, observed=observed, seed=seed, batch_size=batch_size)

    def inpaint(self, x: Any, observed: Any, *, seed: Any = 0, batch_size: int = 100) -> Answers:
        """Draws the missing values given the observed ones; arguments as in `marginal_log_prob`.

        Returns:
            `x`, a draw, and `x_mean`, the mean of its pixels at the latents of the draw; [N, *event_shape] with the
            observed values as given.
        """
        self._require_missing()
        return self.query("inpaint", x=x, observed=observed, seed=seed, batch_size=batch_size)

    def region_log_prob(self, x: Any, *, seed: Any = 0, batch_size: int = 100) -> Answers:
        """What the R leaf regions of the card (`leaf_regions`) contribute to log p(x); arguments as in `log_prob`.

        Returns:
            `contribution` [N, R] and `structure` [N], which sum to log p(x); where no value is in two regions also
            `marginal` and `conditional` [N, R], the log density of a region by itself and given all other values. In
            nats. A region is out of place where the second is less than the first.

        Raises:
            ValueError: a model without regions, or observations as in `log_prob`.
        """
        if not self.has_regions:
            raise ValueError(f"{self.card['preset']} has no regions; it answers {', '.join(self.card['signatures'])}")
        return self.query("region_log_prob", x=x, seed=seed, batch_size=batch_size)

    def _require_missing(self) -> None:
        if not self.allows_missing:
            raise ValueError(
                f"{self.card['preset']} takes no missing values; it answers {', '.join(self.card['signatures'])}"
            )

    def _partly_observed(self, x: Any, observed: Any) -> tuple[np.ndarray, np.ndarray]:
        x, observed = np.asarray(x), np.asarray(observed)
        if observed.dtype != bool or observed.shape not in (x.shape, x.shape[1:]):
            raise ValueError(
                f"observed must be Boolean of shape {list(x.shape)} or {list(x.shape[1:])}, found {observed.dtype} "
                f"{list(observed.shape)}"
            )
        observed = np.broadcast_to(observed, x.shape)
        return self._observations(np.where(observed, x, 0)), observed

    def check(self, x: Any) -> None:
        """Raises ValueError unless observations are [N, *event_shape] inside the model's support."""
        self._observations(x)

    def _observations(self, x: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.dtype.kind not in "biuf":
            raise ValueError(f"observations must be numbers, found dtype {x.dtype}")
        if x.shape[1:] != self.event_shape or not len(x):
            expected = ", ".join(str(size) for size in self.event_shape)
            raise ValueError(f"observations must have shape [N, {expected}] with N >= 1, found {list(x.shape)}")
        if not np.isfinite(x).all():
            raise ValueError(
                f"observations must be finite, found {int((~np.isfinite(x)).sum())} NaN or infinite values"
            )
        if self.card["support"] == "binary" and not np.isin(x, (0, 1)).all():
            wrong = x[~np.isin(x, (0, 1))]
            raise ValueError(
                f"this model scores binary data: observations must be 0 or 1, found {wrong[0].item()} and {wrong.size} "
                "such values; binarise them first (for example x >= 0.5)"
            )
        if self.card["support"] == "integers_0_255":
            outside = (x < 0) | (x > 255) | (x != np.rint(x))
            if outside.any():
                raise ValueError(
                    f"this model scores grey levels: observations must be integers in 0..255, found "
                    f"{x[outside][0].item()} and {int(outside.sum())} such values"
                )
        return x.astype(np.float32)


class ServedModel(Questions[dict[str, np.ndarray], np.ndarray]):
    """An exported model whose answers are waited for: `_run` gives the outputs of one chunk."""

    @abc.abstractmethod
    def _run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature for a few rows, each [n, ...]."""

    def _ask(self, request: Request) -> dict[str, np.ndarray]:
        chunks = progress.track(request.chunks, "batch", f"asking {request.signature}")
        return join([self._run(request.signature, chunk) for chunk in chunks])

    def _only(self, answers: dict[str, np.ndarray], name: str) -> np.ndarray:
        return answers[name]


def _request(signature: str, seed: Any, batch_size: int, inputs: dict[str, Any]) -> Request:
    """Checks the seeds of a question, None for one without, and cuts it into chunks."""
    if seed is not None:
        num = len(next(iter(inputs.values()))) if inputs else len(seed)
        inputs = {**inputs, "seed": np.broadcast_to(checked_seeds(seed, num), [num])}
    inputs = {name: np.asarray(values) for name, values in inputs.items()}
    chunks = zip(*(parts(values, batch_size) for values in inputs.values()), strict=True)
    return Request(signature, [dict(zip(inputs, values, strict=True)) for values in chunks])
