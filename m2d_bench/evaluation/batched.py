"""The linear probe: every seed and fold is one slice of a batched problem [P, C, D] with gradients written out.

Probes that learn a mixture of layers or frames before the linear layer are slices of one likewise, by autograd.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim.adam import adam

from m2d_bench.evaluation import maps
from m2d_bench.evaluation.metrics import batched_scores, on_float64_device
from m2d_bench.evaluation.problems import Outcome, Problem
from m2d_bench.evaluation.settings import MIXING_LEARNING_RATE, ProbeSettings
from m2d_bench.settings import Compute
from m2d_bench.tasks.splits import count_classes
from m2d_bench.tasks.task import Metric

_ROWS = 8192  # of features converted at a time
_ELEMENTS = 2**22  # standardised or evaluated at a time
_BATCH_ELEMENTS = 2**31  # of a batch of all problems trained side by side


def fit_linear(
    features: Tensor,
    labels: Tensor,
    problems: Sequence[Problem],
    settings: ProbeSettings,
    metric: Metric,
    compute: Compute,
    progress: Callable[[int], None],
) -> Iterator[Outcome]:
    """Train a linear probe on every problem; see `probes.run_probes` for the arguments.

    Yields:
        The outcome of a problem as soon as it is finished.

    Source: M2D-X (2024), section IV-B.
    """
    device = compute.torch_device()
    parts = features.shape[1] if features.ndim == 3 else 1
    probes: type[_BatchedProbes] = _BatchedProbes
    if features.ndim == 3:
        probes = _AttentiveProbes if settings.probe == "attentive" else _WeightedProbes
    views = 1 + max((problem.view for problem in problems), default=0)
    dtype = torch.bfloat16 if compute.resolved_precision() == "bf16" else torch.float32
    store = _store(features.flatten(1), views, parts if probes.frames else 1, dtype, device)
    labels = labels.to(device)
    for group in _groups(problems, device, settings.probe_batch_size * store.shape[1]):
        yield from probes(store, dtype, parts, labels, problems, group, settings, metric).fit(progress)


def _groups(problems: Sequence[Problem], device: torch.device, batch_elements: int) -> list[list[int]]:
    """Which problems are trained side by side, by their index.

    Args:
        problems: All of them.
        device: On a CPU, those of one seed and one feature matrix, so that what they touch stays in the cache.
        batch_elements: Numbers in a problem's batch of features: bounds how many are trained side by side.
    """
    most = max(1, _BATCH_ELEMENTS // batch_elements)
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        alike[(problem.view, problem.seed) if device.type == "cpu" else ()].append(index)
    return [group[start : start + most] for group in alike.values() for start in range(0, len(group), most)]


def _store(features: Tensor, views: int, frames: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The features on the device; as bf16 they are standardised over all rows first, lest large means eat the bits.

    That common standardisation carries nothing from test into training: each problem standardises again by its own.
    On a CPU, large ones stay where they are, as fp32: their rows are standardised when they are taken.

    Args:
        features: [rows, E].
        views: Feature matrices one below the other, each standardised by its own rows.
        frames: As for `_standardisation`.
        dtype: Of what is returned.
        device: Where it goes.
    """
    if dtype == torch.float32 or (device.type == "cpu" and features.nbytes > maps.LARGE):
        return features.to(device, torch.float32)
    store = torch.empty(features.shape, dtype=torch.bfloat16, device=device)
    for part, target in zip(features.chunk(views), store.chunk(views), strict=True):
        shift, scale = _standardisation(part, torch.arange(len(part)), frames)
        for start in range(0, len(part), _ROWS):
            target[start : start + _ROWS] = torch.addcmul(shift, part[start : start + _ROWS].float(), scale)
    return store


def _standardisation(features: Tensor, rows: Tensor, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Shift and scale, each [E] fp32: features × scale + shift has mean 0 and biased variance 1 over the rows.

    Columns without variance get scale 1, as scikit-learn's StandardScaler does.

    Args:
        features: [N, E].
        rows: Clips, [n].
        frames: Of a row: E / frames columns stand one after the other, and are alike standardised in all of them.
    """
    if frames > 1:
        rows = (rows[:, None] * frames + torch.arange(frames)).flatten()
        shift, scale = _standardisation(features.view(len(features) * frames, -1), rows)
        return shift.repeat(frames), scale.repeat(frames)
    mean, variance = _moments(features, rows.to(features.device))
    deviation = variance.sqrt()
    constant = deviation <= torch.finfo(torch.float64).eps * len(rows) * mean.abs()
    scale = torch.where(constant, 1.0, 1 / deviation)
    return (-mean * scale).float().to(features.device), scale.float().to(features.device)


def _moments(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each column over the rows, each [E] fp64; large features are read once, in order.

    Source: Chan, Golub and LeVeque (1979), Updating formulae and a pairwise algorithm for computing sample variances.
    """
    if features.device.type != "cpu" or features.nbytes <= maps.LARGE:
        columns = features.split(max(64, _ELEMENTS // (8 * len(rows))), dim=1)
        moments = [_moments_in_memory(on_float64_device(part[rows]).double()) for part in columns]
        return torch.cat([mean for mean, _ in moments]), torch.cat([variance for _, variance in moments])
    mean, squares, seen = torch.zeros(1), torch.zeros(1), 0
    for part in rows.sort().values.split(_ROWS):
        part_mean, part_variance = _moments_in_memory(features[part].double())
        step, total = part_mean - mean, seen + len(part)
        squares = squares + part_variance * len(part) + step**2 * (seen * len(part) / total)
        mean, seen = mean + step * (len(part) / total), total
    return mean, squares / seen


def _moments_in_memory(part: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each column of [n, E], which is overwritten."""
    mean = part.mean(0)
    return mean, part.sub_(mean).square_().mean(0)


@dataclass
class _Run:
    """Where one of the problems trained side by side stands."""

    index: int
    problem: Problem
    generator: Generator
    best_score: float = -math.inf
    best_epoch: int = 0
    scores: list[float] = field(default_factory=list)


class _BatchedProbes:
    """Linear probes trained side by side: row i of every tensor belongs to run i, runs with most training rows first.

    `state` stacks parameters, gradients, Adam's two moments and the best parameters so far, each [P, C·D + C]: weights
    [C, D], then biases, then what a subclass adds. A step therefore takes the first runs alone where the others have no
    batch left in the epoch.
    """

    frames = False
    """Whether the parts of a row are frames, which are standardised alike."""

    def __init__(
        self,
        store: Tensor,
        dtype: torch.dtype,
        parts: int,
        labels: Tensor,
        problems: Sequence[Problem],
        group: list[int],
        settings: ProbeSettings,
        metric: Metric,
    ) -> None:
        self.store, self.parts, self.labels, self.settings = store, parts, labels, settings
        self.dtype = dtype
        self.width = store.shape[1] // parts
        self.metric: Metric = metric
        self.n_classes = count_classes(labels)
        group = sorted(group, key=lambda i: -len(problems[i].train))
        self.runs = [_Run(i, problems[i], problems[i].generator()) for i in group]
        self.train = [run.problem.train.cpu() for run in self.runs]
        self.valid, self.valid_present = _pad([run.problem.valid for run in self.runs], store.device)
        self.batch_weights = self._batch_weights()
        statistics = [_standardisation(store, rows, parts if self.frames else 1) for rows in self.train]
        self.shift, self.scale = (torch.stack(both)[:, None] for both in zip(*statistics, strict=True))
        n_linear = self.n_classes * (self.width + 1)
        self.state = torch.zeros(5, len(group), n_linear + self.n_mixing, device=store.device)
        self.steps = torch.zeros(len(group), device=store.device)
        bound = self.width**-0.5
        for run, parameters in zip(self.runs, self.state[0], strict=True):
            drawn = torch.empty(n_linear).uniform_(-bound, bound, generator=run.generator)
            parameters[:n_linear] = drawn

    def fit(self, progress: Callable[[int], None]) -> Iterator[Outcome]:
        """Train until every run is finished, giving the outcome of each when it is."""
        for epoch in range(1, self.settings.epochs + 1):
            self._train_epoch()
            running = len(self.runs)
            finished = self._validate(epoch)
            yield from map(self._outcome, finished)
            progress(running + len(finished) * (self.settings.epochs - epoch))
            self._drop(finished)
            if not self.runs:
                return

    def _train_epoch(self) -> None:
        size = self.settings.probe_batch_size
        shuffled = [
            rows[torch.randperm(len(rows), generator=run.generator)]
            for rows, run in zip(self.train, self.runs, strict=True)
        ]
        order = pad_sequence(shuffled, batch_first=True).to(self.store.device, non_blocking=True)
        for start in range(0, order.shape[1], size):
            active = sum(len(rows) > start for rows in self.train)
            batch = (slice(active), slice(start, start + size))
            self._step(order[batch], self.batch_weights[batch])

    def _step(self, rows: Tensor, weights: Tensor) -> None:
        """One Adam step of the first runs.

        Args:
            rows: The clips of each run's batch, [P, B].
            weights: What each clip counts in its batch's mean, 0 for padding, [P, B].
        """
        active = len(rows)
        parameters, gradients, mean, square, _ = self.state[:, :active]
        x = self._standardised(rows, slice(active), self.dtype)
        logits, backward = self._forward(parameters, gradients, x)
        if self.labels.ndim == 1:
            error = logits.softmax(1)
            error.scatter_add_(1, self.labels[rows][:, None], torch.full_like(error[:, :1], -1.0))
        else:
            error = logits.sigmoid() - self.labels[rows].mT
        error *= weights[:, None]
        backward(error)
        adam(
            list(parameters.unbind()),
            list(gradients.unbind()),
            list(mean.unbind()),
            list(square.unbind()),
            [],
            list(self.steps[:active].unbind()),
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
        )

    def _forward(self, parameters: Tensor, gradients: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Logits [P, C, B], and what writes the gradients by the loss's gradient in the logits."""

        def backward(error: Tensor) -> None:
            weight, bias = self._split(gradients)
            weight.copy_(torch.bmm(error.to(x.dtype), x))
            torch.sum(error, 2, out=bias)

        return self._logits(parameters, x), backward

    def _validate(self, epoch: int) -> list[int]:
        """Keep the weights that are the best so far; the runs that are finished.

        A tie counts as better, as in the reference: small validation splits have few distinct scores, and training goes
        on while they only stand still.
        """
        logits = self._evaluate(self.state[0], self.valid, slice(None))
        scores = batched_scores(self.metric, logits.mT, self.labels[self.valid], self.valid_present).tolist()
        for run, score in zip(self.runs, scores, strict=True):
            run.scores.append(score)
        better = [i for i, run in enumerate(self.runs) if scores[i] >= run.best_score]
        for i in better:
            self.runs[i].best_score, self.runs[i].best_epoch = scores[i], epoch
            self.state[4, i] = self.state[0, i]
        last = epoch == self.settings.epochs
        return [i for i, run in enumerate(self.runs) if last or epoch - run.best_epoch >= self.settings.patience]

    def _outcome(self, i: int) -> Outcome:
        """A finished run's best epoch, validation scores, and test logits [N, C] of the best weights."""
        run, one = self.runs[i], slice(i, i + 1)
        rows = run.problem.test.to(self.store.device)
        logits = self._evaluate(self.state[4, one], rows[None], one)[0].T
        return Outcome(run.index, {"epoch": run.best_epoch, **self._mixture(self.state[4, i])}, run.scores, logits)

    def _drop(self, finished: list[int]) -> None:
        """Let the finished runs leave the batch."""
        if not finished:
            return
        keep = [i for i in range(len(self.runs)) if i not in finished]
        self.runs, self.train = [self.runs[i] for i in keep], [self.train[i] for i in keep]
        self.state = self.state[:, keep]
        for name in ("steps", "shift", "scale", "valid", "valid_present"):
            setattr(self, name, getattr(self, name)[keep])
        if keep:
            self.batch_weights = self._batch_weights()

    def _batch_weights(self) -> Tensor:
        """What each place of an epoch counts in the mean of its batch, [P, longest]."""
        size = self.settings.probe_batch_size
        lengths = torch.tensor([[len(rows)] for rows in self.train])
        position = torch.arange(int(lengths.max()))
        in_batch = (lengths - position // size * size).clamp(1, size)
        classes = self.n_classes if self.labels.ndim == 2 else 1
        return ((position < lengths) / (in_batch * classes)).to(self.store.device)

    def _split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Views of weights [P, C, D] and biases [P, C] in flat parameters or gradients."""
        n_weights = self.n_classes * self.width
        return flat[:, :n_weights].unflatten(1, (self.n_classes, -1)), flat[:, n_weights : n_weights + self.n_classes]

    def _standardised(self, rows: Tensor, runs: slice, dtype: torch.dtype) -> Tensor:
        x = self.store.index_select(0, rows.flatten()).view(*rows.shape, -1)
        x = x.to(torch.promote_types(x.dtype, dtype))
        return torch.addcmul(self.shift[runs].to(x.dtype), x, self.scale[runs].to(x.dtype), out=x).to(dtype)

    def _logits(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Logits [P, C, B] of standardised features [P, B, D], their products in the features' precision."""
        weight, bias = self._split(parameters)
        return torch.bmm(weight.to(x.dtype), x.mT) + bias[:, :, None]

    def _evaluate(self, parameters: Tensor, rows: Tensor, runs: slice) -> Tensor:
        """Logits [P, C, V] of the rows [P, V], in fp32 and a part of the rows at a time."""
        size = max(1, _ELEMENTS // (len(rows) * self.store.shape[1]))
        parts = (self._standardised(part, runs, torch.float32) for part in rows.split(size, dim=1))
        return torch.cat([self._logits(parameters, part) for part in parts], dim=2)

    @property
    def n_mixing(self) -> int:
        """Parameters of a problem beside the linear layer's."""
        return 0

    def _mixture(self, parameters: Tensor) -> dict[str, float]:
        """What a record tells of a problem's parameters."""
        return {}


class _MixtureProbes(_BatchedProbes):
    """Linear probes on a mixture of a row's parts, under weights that are learned with them from equal ones."""

    @property
    def _mixing_rate(self) -> float:
        return MIXING_LEARNING_RATE / self.settings.learning_rate

    def _forward(self, parameters: Tensor, gradients: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        leaf = parameters.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._logits(leaf, x)

        def backward(error: Tensor) -> None:
            gradients.copy_(torch.autograd.grad(logits, leaf, error)[0])

        return logits.detach(), backward

    def _logits(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Logits [P, C, B] of standardised features [P, B, M·D]."""
        x = x.unflatten(2, (self.parts, self.width))
        weights = self._mixing(self._mixing_rate * parameters[:, -self.n_mixing :], x).softmax(2)
        return super()._logits(parameters, torch.einsum("pbm,pbmd->pbd", weights.to(x.dtype), x))

    def _mixing(self, mixing: Tensor, x: Tensor) -> Tensor:
        """Logits [P, B, M] of the weights of the parts of [P, B, M, D], by the parameters [P, n]."""
        raise NotImplementedError


class _WeightedProbes(_MixtureProbes):
    """On a sum of layers, each standardised; one weight a layer.

    Source: SUPERB (arXiv 2105.01051), section 2.
    """

    @property
    def n_mixing(self) -> int:
        return self.parts

    def _mixing(self, mixing: Tensor, x: Tensor) -> Tensor:
        return mixing[:, None].expand(-1, x.shape[1], -1)

    def _mixture(self, parameters: Tensor) -> dict[str, float]:
        weights = (self._mixing_rate * parameters[-self.parts :]).softmax(0).tolist()
        return {f"layer {number}": round(weight, 4) for number, weight in enumerate(weights, 1)}


class _AttentiveProbes(_MixtureProbes):
    """On a sum of frames, weighted by one learned query: a frame's logit is the mean of query × frame over D."""

    frames = True

    @property
    def n_mixing(self) -> int:
        return self.width

    def _mixing(self, mixing: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("pbmd,pd->pbm", x, mixing.to(x.dtype)).float() / self.width


def _pad(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of different length as one matrix, and where it is not padding."""
    present = pad_sequence([torch.ones(len(part), dtype=torch.bool) for part in rows], batch_first=True)
    return pad_sequence([part.cpu() for part in rows], batch_first=True).to(device), present.to(device)
