"""From logits to the next tokens: one step of the world model, in training, evaluation and play.

Contract: `predict_next` turns history and actions into the next tokens, `advance` and `next_age`
feed them back. The model predicts its active cells, all others are copied. A token changes where
that is likelier than that it stays, then to the likeliest other code: an object that surely moves,
but whose code is open, would vanish if the likeliest code of all were taken. Of the cells that are
least certain the model's config may let some be decided one after another, each given those before
(MaskGIT, arXiv 2202.04200). Knows nothing of pixels, files or losses.

Weights of the first edition (`change_weight` in their config) learnt logits that are not
calibrated. They take the likeliest code; for these alone, where more changes are expected than
made, one is decided and the frame predicted again.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, overload

import torch

from v2.models.cells import at_cells, nearest_cells
from v2.models.temporal_world_model import MAX_AGE, Prediction, TemporalWorldModel
from v2.runtime.cli import MIN_TEMPERATURE

END_PROB = 0.5  # above it a dream says that its game is over
REFINED_CELLS = 48  # active cells around a revealed one that are predicted again
COPY_LOGIT = 20.0  # of the last frame's code in a cell that is copied


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen from logits."""

    temperature: float = 0.0  # 0: greedy; else at least MIN_TEMPERATURE

    def __post_init__(self):
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"temperature must be 0 or at least {MIN_TEMPERATURE}, got {self.temperature}"
            )


GREEDY = Sampling()


class Step(NamedTuple):
    tokens: torch.Tensor  # int64 (B, N)
    prediction: Prediction  # before anything was decided
    cells: torch.Tensor | None  # int64 (B, M), those predicted; None: all


def predict_next(
    model: TemporalWorldModel,
    history: torch.Tensor,
    actions: torch.Tensor,
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
    age: torch.Tensor | None = None,
    revealed: torch.Tensor | None = None,
    num_decided: int | None = None,
    num_cells: int = 0,
    num_layers: int = 0,
    fold: torch.Tensor | None = None,
) -> Step:
    """Predict one step.

    Args:
        history: tokens (B, 4, N), oldest first.
        actions: (B, 4), the three between them and the one taken now.
        age: for how many steps each token has not changed, (B, N), 0 unknown; None: all unknown.
        revealed: next tokens that are known, (B, N), K where none is; None: none.
        num_decided: cells that are decided in turn; None: as many as the model's config says.
        num_cells: active cells where they are fewer than the config's; 0: the config's.
        num_layers: layers that run, the first ones; 0: all.
        fold: what each reads of the table of patches, int64 (B,); None: the whole table.
    """
    last, num_codes = history[:, -1], model.config.num_codes
    num_decided = model.config.num_decided if num_decided is None else num_decided
    cells = model.active_cells(history, num_cells)
    kept = None if model.config.change_weight else at_cells(last, cells)
    if not num_decided:
        prediction = model(history, actions, cells, revealed, age, num_layers, fold)
        chosen = choose_tokens(prediction.logits, kept, sampling, generator)
    else:
        trunk = model.trunk(history, actions, cells, age, fold, num_layers)
        prediction = model.finish(trunk, cells, revealed, num_layers)
        logits = prediction.logits
        chosen = choose_tokens(logits, kept, sampling, generator)
        known = torch.full_like(last, num_codes) if revealed is None else revealed
        with torch.no_grad():
            for _ in range(num_decided):
                place = _least_certain(logits, at_cells(known, cells) < num_codes)  # (B, 1)
                cell = place if cells is None else cells.gather(1, place)
                known = known.scatter(1, cell, chosen.gather(1, place))
                logits = model.finish(trunk, cells, known, num_layers).logits
                chosen = choose_tokens(logits, kept, sampling, generator)
        revealed = known
    tokens = chosen if cells is None else last.scatter(1, cells, chosen)
    if revealed is not None:
        tokens = torch.where(revealed < num_codes, revealed, tokens)
    step = Step(tokens, prediction, cells)
    if model.config.change_weight and revealed is None:
        return _with_missing_changes(model, history, actions, age, step)
    return step


def choose_tokens(
    logits: torch.Tensor, last: torch.Tensor | None, sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Choose tokens (B, M) from logits (B, M, K).

    Args:
        last: tokens of the last frame, (B, M): without sampling, whether one changes is chosen
            first, then to what; None: the likeliest code is taken.
    """
    if sampling.temperature == 0:
        if last is None:
            return logits.argmax(-1)
        stays = logits.gather(2, last.unsqueeze(2)).squeeze(2)
        others = logits.scatter(2, last.unsqueeze(2), -torch.inf)
        return torch.where(stays >= others.logsumexp(2), last, others.argmax(2))
    logits = logits / sampling.temperature
    probs = logits.softmax(-1)
    chosen = torch.multinomial(probs.flatten(0, 1), 1, generator=generator)
    return chosen.view(logits.shape[:-1])


def _least_certain(logits: torch.Tensor, is_known: torch.Tensor) -> torch.Tensor:
    """Return the place whose likeliest code is the least probable, of those not known, (B, 1)."""
    certainty = logits.softmax(-1).amax(-1).masked_fill(is_known, torch.inf)
    return certainty.argmin(1, keepdim=True)


def dense_logits(step: Step, last: torch.Tensor) -> torch.Tensor:
    """Return logits of all cells, (B, N, K), those that are copied as certain to stay.

    Args:
        last: tokens of the last frame, (B, N).
    """
    logits = step.prediction.logits
    if step.cells is None:
        return logits
    shape = *last.shape, logits.shape[-1]
    copied = logits.new_zeros(shape).scatter_(2, last.unsqueeze(2), COPY_LOGIT)
    return copied.scatter(1, step.cells.unsqueeze(2).expand_as(logits), logits)


def advance(history: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Drop the oldest frame of (B, 4, N) and append tokens (B, N)."""
    return torch.cat([history[:, 1:], tokens.unsqueeze(1)], dim=1)


@overload
def next_age(age: torch.Tensor, last: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor: ...
@overload
def next_age(age: None, last: torch.Tensor, tokens: torch.Tensor) -> None: ...
def next_age(
    age: torch.Tensor | None, last: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor | None:
    """Return for how many steps tokens (B, N) have not changed; -k: for at least k.

    Args:
        age: of `last`, (B, N), 0 unknown; None stays None.
    """
    if age is None:
        return None
    older = torch.where(age > 0, age + 1, age - 1).clamp(-MAX_AGE, MAX_AGE)
    return torch.where(tokens != last, 1, older)


def known_age(history: torch.Tensor) -> torch.Tensor:
    """Return what a history (B, T, N) alone tells of the age of its last tokens, (B, N)."""
    age = torch.zeros_like(history[:, 0])
    for t in range(1, history.shape[1]):
        age = next_age(age, history[:, t - 1], history[:, t])
    return age


def expected_changes(logits: torch.Tensor, last: torch.Tensor, config) -> torch.Tensor:
    """Return how probable it is that each token differs from the last frame's, (B, N).

    Training counts a change `change_weight` times, and a token that stays though it was doubted by
    p 1 + `false_change_scale` p times; here both are divided out.

    Args:
        logits: (B, N, K); last: tokens (B, N).
    """
    stay = logits.softmax(-1).gather(2, last.unsqueeze(2)).squeeze(2)
    change = 1 - stay
    stay = stay * config.change_weight / (1 + config.false_change_scale * change)
    return change / (change + stay)


def _with_missing_changes(model, history, actions, age, step: Step) -> Step:
    """Predict frames again in which changes are missing, with the likeliest of these revealed.

    They are missing where the sum of all expected changes exceeds those made by more than
    `max_missing` of the model's config. Of active cells only the nearest are predicted again.
    """
    last, num_codes, first = history[:, -1], model.config.num_codes, step.prediction
    logits = dense_logits(step, last)
    change = expected_changes(logits, last, model.config)
    is_made = step.tokens != last
    is_missing = (change - is_made.float()).sum(1) > model.config.max_missing
    place = change.masked_fill(is_made, 0).argmax(1, keepdim=True)
    code = logits.scatter(2, last.unsqueeze(2), -torch.inf).argmax(2).gather(1, place)
    known = torch.full_like(last, num_codes).scatter(1, place, code)

    def predict_again(rows):
        cells, of_rows = (None if part is None else part[rows] for part in (step.cells, age))
        seen, revealed = history[rows], known[rows]
        if cells is not None:
            cells = nearest_cells(cells, place[rows], REFINED_CELLS, model.config.grid)
        second = model(seen, actions[rows], cells, revealed, of_rows)
        chosen = second.logits.argmax(-1)
        tokens = chosen if cells is None else step.tokens[rows].scatter(1, cells, chosen)
        tokens = torch.where(revealed < num_codes, revealed, tokens)
        if cells is None:
            return tokens, second.reward_logits, second.terminated_logits
        return tokens, first.reward_logits[rows], first.terminated_logits[rows]

    found: tuple[torch.Tensor, ...] = step.tokens, first.reward_logits, first.terminated_logits
    if torch.compiler.is_exporting():  # one dream: a branch of the graph
        found = torch.cond(
            is_missing.any(),
            lambda *first: tuple(map(torch.clone, predict_again(slice(None)))),
            lambda *first: tuple(map(torch.clone, first)),
            found,
        )
    elif len(rows := is_missing.nonzero().flatten()):
        pairs = zip(found, predict_again(rows), strict=True)
        found = tuple(old.index_copy(0, rows, new) for old, new in pairs)
    tokens, reward, end = found
    return Step(tokens, Prediction(first.logits, reward, end), step.cells)
