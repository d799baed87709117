"""Training: batches of texts of like length, one loss over all heads, a curve of it, the same result for a seed.

On a GPU a step is recorded once per shape and played back (CUDA graphs): its thousands of small kernels take far longer
to start one by one than to run.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from infra.triton.taxonomy import Taxonomy
from infra.triton.train import heads, metrics
from infra.triton.train.corpus import Verbatim, definitions
from infra.triton.train.network import Network

MAX_TOKENS = 96
#: Tokens of a batch, padding included.
BATCH_TOKENS = 2048
HEAD_RATE = 2.5
WARM_UP = 0.06
DECAY = 0.01
CLIP = 1.0
#: Each layer learns at this share of the rate of the one above it: lower ones know what all texts have in common
#: (Howard and Ruder 2018, arXiv:1801.06146).
LAYER_RATE = 0.93
#: Share of tokens that a text loses, others each time it is read (token cutoff; Shen et al. 2020, arXiv:2009.13818).
CUTOFF = 0.12
#: Share of a label that all classes get alike (Szegedy et al. 2016, arXiv:1512.00567).
SMOOTHING = 0.08
#: How much a head's loss counts.
WEIGHTS = {"sentiment": 1.0, "point": 1.0, "need": 0.6, "language": 0.2, "emotion": 0.4, "intent": 0.5}
WEIGHT = 0.3

#: On a GPU texts are padded to a multiple of this, so that there are few shapes to record.
ROUND = 8

Allowed = dict[str, NDArray[np.bool_]]
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Settings:
    """`rate` is the highest learning rate of the deltas; heads learn at a multiple of it.

    `consistency` weighs how far two readings of a text, each with dropout and cutoff of its own, may differ; with 0 a
    text is read once.
    """

    seed: int
    epochs: int
    threads: int
    rate: float
    consistency: float


@dataclass(frozen=True, slots=True)
class Words:
    """Texts to ids; `pad` fills up."""

    tokenizer: Any
    pad: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, both ends of one that is too long."""
        return [both_ends(each.ids, MAX_TOKENS) for each in self.tokenizer.encode_batch(list(texts))]


def both_ends(ids: list[int], longest: int) -> list[int]:
    """Where a text is too long, its beginning and its end (Sun et al. 2019, arXiv:1905.05583)."""
    half = longest // 2
    return ids if len(ids) <= longest else ids[:half] + ids[-half:]


def batches(
    ids: Sequence[list[int]], pad: int, budget: int = BATCH_TOKENS, device: str = "cpu"
) -> Iterator[tuple[Any, torch.Tensor]]:
    """Positions and padded ids int64 [texts, length] of batches by length, shortest first."""
    order = sorted(range(len(ids)), key=lambda position: (len(ids[position]), position))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and len(ids[order[end]]) * (end + 1 - start) <= budget:
            end += 1
        some = order[start:end]
        longest = max(len(ids[position]) for position in some)
        yield np.array(some), _padded([ids[position] for position in some], longest, pad).to(device)
        start = end


def shaped(ids: Sequence[list[int]], pad: int, device: str) -> Iterator[tuple[Any, torch.Tensor]]:
    """As `batches`, of few shapes: as many texts as BATCH_TOKENS takes of a length, lengths rounded up to ROUND.

    The last batch of a length is filled with the first texts of that length.
    """
    lengths: dict[int, list[int]] = {}
    for position, each in enumerate(ids):
        lengths.setdefault(-(-len(each) // ROUND) * ROUND, []).append(position)
    for length, positions in sorted(lengths.items()):
        size = BATCH_TOKENS // length
        for start in range(0, len(positions), size):
            some = np.resize([*positions[start : start + size], *positions], size)
            yield some, _padded([ids[position] for position in some], length, pad).to(device)


def _padded(ids: Sequence[list[int]], length: int, pad: int) -> torch.Tensor:
    """Ids of some texts, int64 [texts, length]."""
    result = np.full((len(ids), length), pad, dtype=np.int64)
    for row, each in enumerate(ids):
        result[row, : len(each)] = each
    return torch.from_numpy(result)


def loss_of(
    logits: dict[str, torch.Tensor], allowed: dict[str, torch.Tensor], weights: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Weighted sum over the heads of the mean of -log P(what the label admits), in which rows have `weights` [rows].

    Needs count once per level, so that the area, which is in all three, matters most: a wrong leaf of the right area is
    a small mistake. `smoothing` is the share of a label that goes to all classes; a row that says nothing has none.
    """
    total = torch.zeros((), device=weights.device)
    for name, admitted in allowed.items():
        head = name.partition("_")[0]
        values = logits[head]
        inside = values.masked_fill(~admitted, -torch.inf)
        every = values.logsumexp(1)
        loss = every - inside.logsumexp(1)
        if smoothing:
            said = ~admitted.all(1)
            loss = (1 - smoothing) * loss + smoothing * said * (every - values.mean(1))
        total = total + WEIGHTS.get(head, WEIGHT) * (weights * loss).sum() / weights.sum()
    return total


def apart(logits: dict[str, torch.Tensor]) -> torch.Tensor:
    """How far the answers of the first half of the texts are from those of the second half: the same texts, read anew.

    The mean of both Kullback-Leibler divergences, weighed as in `loss_of` (R-Drop; Liang et al. 2021, arXiv:2106.14448,
    equation 2).
    """
    total = torch.zeros((), device=logits[heads.NEED].device)
    for head, values in logits.items():
        one, other = torch.log_softmax(values, 1).chunk(2)
        both = functional.kl_div(one, other, log_target=True, reduction="batchmean")
        both = both + functional.kl_div(other, one, log_target=True, reduction="batchmean")
        # Needs are in the loss once per level; two of them do here, for leaves alone have this distance.
        share = 2 if head == heads.NEED else 1
        total = total + share * WEIGHTS.get(head, WEIGHT) * both / 2
    return total


def targets(rows: Sequence[Verbatim], taxonomy: Taxonomy) -> Allowed:
    """What each row's labels admit, by head; of needs also by the two upper levels."""
    upper = {f"{heads.NEED}_{level}": heads.above(rows, taxonomy, level) for level in (1, 2)}
    return {name: heads.allowed(name, rows, taxonomy) for name in heads.NAMES} | upper


def predict(network: Network, ids: Sequence[list[int]], pad: int) -> dict[str, NDArray[np.float64]]:
    """Logits of each head's classes, [texts, classes]."""
    results: dict[str, NDArray[np.float64]] = {}
    with torch.no_grad():
        for some, padded in batches(ids, pad, 4 * BATCH_TOKENS, network.device):
            for name, values in network.logits(padded, padded != pad).items():
                results.setdefault(name, np.zeros((len(ids), values.shape[1])))[some] = values.cpu().numpy()
    return results


def start_needs(network: Network, words: Words, taxonomy: Taxonomy) -> None:
    """Let the head of needs begin with what the taxonomy's own words mean to the pretrained encoder.

    A node's coefficients point from its parent's definition to its own; their length lets logits start near 1.
    """
    rows = definitions(taxonomy)
    ids, pad = words.encode([row.text for row in rows]), words.pad
    pooled = torch.zeros(len(rows), network.hidden, device=network.device)
    with torch.no_grad():
        for some, padded in batches(ids, pad, 4 * BATCH_TOKENS, network.device):
            mask = padded != pad
            states = network.encode(padded, mask, train=False) * mask[:, :, None]
            pooled[some] = states.sum(1) / mask.sum(1, keepdim=True)
    nodes = heads.labels(heads.NEED, taxonomy)
    mean = pooled.mean(0)
    of = {path: pooled[[i for i, row in enumerate(rows) if row.need == path]].mean(0) for path in nodes if path}
    steps = torch.stack([of[path] - of.get(path.rpartition("/")[0], mean) if path else 0 * mean for path in nodes])
    spread = ((pooled - mean) @ steps.T).std()
    network.learnt["head.need.w"].data.copy_(steps / spread)
    network.learnt["head.need.b"].data.copy_(-(steps / spread) @ mean)


def fit(
    network: Network,
    words: Words,
    taxonomy: Taxonomy,
    split: tuple[Sequence[Verbatim], Sequence[Verbatim]],
    settings: Settings,
    *,
    say: Callable[[str], None],
    keep: Path,
) -> list[dict[str, float]]:
    """Train on the first part of `split`, follow on the second; returns a row of figures per epoch.

    What was learnt is written to `keep` after each epoch. A network that begins from an earlier training has its needs
    started already.
    """
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    device = network.device
    rng = np.random.default_rng(settings.seed)
    encode, pad = words.encode, words.pad
    if not network.continues:
        start_needs(network, words, taxonomy)
    seen, watched = [*split[0], *definitions(taxonomy)], split[1]
    ids, watched_ids = encode([row.text for row in seen]), encode([row.text for row in watched])
    watched_allowed = {name: torch.from_numpy(value) for name, value in targets(watched, taxonomy).items()}
    weights = [row.weight for row in seen]
    learn = _Learning(network, settings, pad, allowed=targets(seen, taxonomy), weights=weights)
    on_gpu = device == "cuda"
    step = _Recorded(learn.step) if on_gpu else learn.step
    arrange = partial(shaped, device=device) if on_gpu else batches
    per_epoch = sum(1 for _ in arrange(ids, pad))
    curve: list[dict[str, float]] = []
    started = time.monotonic()
    for epoch in range(1, settings.epochs + 1):
        epoch_loss = torch.zeros((), device=device)
        # Texts of like length share a batch, others each time.
        order = rng.permutation(len(ids))
        made = list(arrange([ids[position] for position in order], pad))
        for done, number in enumerate(rng.permutation(len(made)), start=1):
            some, padded = made[number]
            learn.at(((epoch - 1) * per_epoch + done - 1) / (per_epoch * settings.epochs))
            epoch_loss += step(padded, torch.from_numpy(order[some]).to(device))
            if done % 25 == 0:
                say(f"epoch {epoch}, batch {done} of {len(made)}: {time.monotonic() - started:.0f} s")
        outcome = predict(network, watched_ids, pad)
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value).float() for name, value in outcome.items()}
            watched_loss = float(loss_of(tensors, watched_allowed, torch.ones(len(watched))))
        curve.append(
            {"epoch": epoch, "loss": float(epoch_loss) / len(made), "watched_loss": watched_loss}
            | {name: _score(name, outcome[name], watched, taxonomy) for name in ("sentiment", "point", "need")}
        )
        np.savez(keep, **network.deltas())  # type: ignore[arg-type]
        elapsed = time.monotonic() - started
        left = elapsed / epoch * (settings.epochs - epoch)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in curve[-1].items() if name != "epoch")
        say(f"epoch {epoch} of {settings.epochs}: {figures}; {elapsed:.0f} s, about {left:.0f} s to go")
    return curve


class _Learning:
    """One step of learning at a time, from batches of rows with what `targets` admits of each, and their weights."""

    def __init__(
        self,
        network: Network,
        settings: Settings,
        pad: int,
        *,
        allowed: Allowed,
        weights: Sequence[float],
    ) -> None:
        device = network.device
        self._network, self._settings, self._pad = network, settings, pad
        self._allowed = {name: torch.from_numpy(value).to(device) for name, value in allowed.items()}
        self._weights = torch.tensor(weights, device=device)
        self._optimiser = torch.optim.AdamW(
            _groups(network, settings.rate), weight_decay=DECAY, capturable=device == "cuda"
        )
        self._rates = [float(group["lr"]) for group in self._optimiser.param_groups]
        for group in self._optimiser.param_groups:
            # Where a step is recorded, so is the place of its rate.
            group["lr"] = torch.tensor(0.0, device=device)

    def at(self, progress: float) -> None:
        """Set the rates to what they are after this share of the training."""
        for group, highest in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"].fill_(highest * _rate(progress))

    def step(self, padded: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Learn from the texts of `padded` [texts, length], which are those of the numbers `rows`; gives their loss."""
        settings = self._settings
        if settings.consistency:
            padded, rows = padded.repeat(2, 1), rows.repeat(2)
        padded = cut(padded, self._pad)
        logits = self._network.logits(padded, padded != self._pad, train=True)
        allowed = {name: value[rows] for name, value in self._allowed.items()}
        loss = loss_of(logits, allowed, self._weights[rows], SMOOTHING)
        if settings.consistency:
            loss = loss + settings.consistency * apart(logits)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._network.learnt.values(), CLIP)
        self._optimiser.step()
        return loss.detach()


class _Recorded:
    """A training step on a GPU, recorded for each shape of batch and played back from then on.

    All recordings share one pool of memory, so only one may be under way; what a step gives holds until the next.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._shapes: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, padded: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        shape = tuple(padded.shape)
        if not self._shapes:
            # What libraries and the optimiser set up at first use must not be recorded.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step(padded, rows)
            torch.cuda.current_stream().wait_stream(stream)
        if shape not in self._shapes:
            mine, whose = padded.clone(), rows.clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                loss = self._step(mine, whose)
            self._shapes[shape] = graph, mine, whose, loss
        graph, mine, whose, loss = self._shapes[shape]
        mine.copy_(padded)
        whose.copy_(rows)
        graph.replay()
        return loss


def cut(padded: torch.Tensor, pad: int) -> torch.Tensor:
    """`padded` [texts, length] without CUTOFF of its tokens, which are as unseen as padding; the first always stays."""
    lost = torch.rand(padded.shape, device=padded.device) < CUTOFF
    lost[:, 0] = False
    return padded.masked_fill(lost, pad)


def _groups(network: Network, rate: float) -> list[dict[str, Any]]:
    """What is learnt, by the rate at which: heads fastest, layers slower the lower they are."""
    rates: dict[float, list[torch.Tensor]] = {}
    for name, value in network.learnt.items():
        part = name.partition(".")[0]
        share = HEAD_RATE if part == "head" else LAYER_RATE ** (network.layers - 1 - int(part[1:]))
        rates.setdefault(share * rate, []).append(value)
    return [{"params": values, "lr": each} for each, values in rates.items()]


def _rate(progress: float) -> float:
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _score(name: str, logits: NDArray[np.float64], rows: Sequence[Verbatim], taxonomy: Taxonomy) -> float:
    """Macro-F1 on rows that say; of needs, of the first level."""
    if name != heads.NEED:
        known = heads.labels(name, taxonomy)
        said = [number for number, row in enumerate(rows) if getattr(row, name)]
        guess = [known[index] for index in logits[said].argmax(1)]
        return metrics.macro_f1([getattr(rows[number], name) for number in said], guess)
    areas = ["", *(path for path in heads.labels(name, taxonomy) if path and "/" not in path)]
    nodes = heads.labels(name, taxonomy)
    likely = np.exp(logits - logits.max(1, keepdims=True)) @ heads.tree(name, taxonomy).T
    best = likely[:, [nodes.index(area) for area in areas]].argmax(1)
    return metrics.macro_f1([row.need.split("/")[0] for row in rows], [areas[index] for index in best])
