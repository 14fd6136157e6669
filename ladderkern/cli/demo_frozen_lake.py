"""The images part's task: the picture of a FrozenLake board after a move, from the picture before, both as tokens.

Boards, moves and pictures are gymnasium's own. A picture is cut into 7 x 7 patches, which straddle the 4 x 4 tiles, and each
patch becomes the nearest code of a k-means codebook: a small, lossy image tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MOVES = ("left", "down", "right", "up")  # token 0..3; code c of the codebook is token IMAGE_START + c
IMAGE_START = len(MOVES)
SIDE = 4  # tiles
GRID, PATCH = 7, 16  # tokens along a side of a picture, pixels along a side of a token
TOKENS = GRID * GRID

Board = tuple[str, ...]
State = tuple[Board, int]  # the agent stands on tile row * SIDE + column
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Setting:
    """What both losses of the images part share."""

    seed: int = 0
    boards: int = 80
    held_out_boards: int = 24
    judged: int = 128  # held-out moves whose pictures are generated
    frozen_share: float = 0.7  # of a random board's tiles; the others are holes
    codes: int = 128
    steps: int = 500
    batch: int = 16
    lr: float = 3e-3
    hidden: int = 96
    layers: int = 2
    weight: float = 1.0  # of the discrepancy, as published

    def describe(self) -> str:
        """Everything but the seed, as ``name=value`` pairs."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items() if name != "seed")


FULL = Setting()
QUICK = Setting(boards=30, held_out_boards=8, judged=32, steps=90)


def draw_boards(count: int, frozen_share: float, generator: torch.Generator) -> list[Board]:
    """Different random boards, each with a way from start to goal."""
    from gymnasium.envs.toy_text.frozen_lake import generate_random_map

    boards: dict[Board, None] = {}
    while len(boards) < count:
        seed = int(torch.randint(2**31, (), generator=generator))
        boards[tuple(generate_random_map(SIDE, frozen_share, seed))] = None
    return list(boards)


def moves_of(board: Board) -> list[tuple[int, int, int]]:
    """(tile, move, next tile) of every move that leads to another tile, from every tile where the game goes on."""
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

    table = FrozenLakeEnv(desc=list(board), is_slippery=False).P
    steps = [(tile, move, table[tile][move][0][1]) for tile in table for move in table[tile]]
    return [(tile, move, to) for tile, move, to in steps if tile != to]


def cut(pictures: Tensor) -> Tensor:
    """Pictures as rows of patches.  [P, GRID * PATCH, GRID * PATCH, 3] -> [P, TOKENS, PATCH * PATCH * 3]"""
    return pictures.view(-1, GRID, PATCH, GRID, PATCH, 3).transpose(2, 3).reshape(-1, TOKENS, PATCH * PATCH * 3)


def join(patches: Tensor) -> Tensor:
    """The inverse of :func:`cut`."""
    return patches.view(-1, GRID, GRID, PATCH, PATCH, 3).transpose(2, 3).reshape(-1, GRID * PATCH, GRID * PATCH, 3)


def paint(states: Iterable[State]) -> Tensor:
    """gymnasium's pictures of states, at our size.  [P, GRID * PATCH, GRID * PATCH, 3] uint8"""
    os.environ["SDL_VIDEODRIVER"] = "dummy"  # pygame asks for a display even to draw into memory
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

    # One environment draws all boards: each would load the tiles again.
    env: Any = FrozenLakeEnv(render_mode="rgb_array", is_slippery=False)
    pictures, rendered = [], []
    for board, tile in states:
        env.desc, env.s = np.asarray(board, dtype="c"), tile
        rendered.append(np.array(env.render()))
        if len(rendered) == 64:
            pictures.append(shrink(rendered))
            rendered = []
    env.close()
    return torch.cat((*pictures, shrink(rendered))) if rendered else torch.cat(pictures)


def shrink(rendered: list[np.ndarray]) -> Tensor:
    """Pictures of any size to ours.  [P, GRID * PATCH, GRID * PATCH, 3] uint8"""
    pixels = torch.from_numpy(np.stack(rendered)).permute(0, 3, 1, 2).float()
    small = F.interpolate(pixels, size=(GRID * PATCH, GRID * PATCH), mode="area")
    return small.permute(0, 2, 3, 1).round().to(torch.uint8)


def k_means(points: Tensor, counts: Tensor, num_codes: int, generator: torch.Generator, rounds: int = 25) -> Tensor:
    """Lloyd's algorithm from a k-means++ start, over different points that occur ``counts`` times.

    Args:
        points: [P, d] float32. counts: [P] float32.

    Returns:
        Centres, [min(num_codes, P), d].
    """
    if len(points) <= num_codes:
        return points.clone()
    chosen = [int(torch.multinomial(counts, 1, generator=generator))]
    nearest = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < num_codes:
        chosen.append(int(torch.multinomial(counts * nearest, 1, generator=generator)))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
    centres = points[chosen]
    for _ in range(rounds):
        owner = torch.cdist(points, centres).argmin(1)
        size = torch.zeros(num_codes).index_add_(0, owner, counts)
        total = torch.zeros_like(centres).index_add_(0, owner, points * counts[:, None])
        centres = torch.where(size[:, None] > 0, total / size[:, None].clamp(min=1), centres)
    return centres


@dataclass(frozen=True)
class Codebook:
    """An image tokenizer: patches to the nearest code and back."""

    codes: Tensor  # [N, PATCH * PATCH * 3] float32, in pixel values 0..255
    deviation: float  # of the pixels it was made from

    @staticmethod
    def fit(pictures: Tensor, num_codes: int, generator: torch.Generator) -> Codebook:
        """The codebook of pictures, [P, GRID * PATCH, GRID * PATCH, 3] uint8."""
        patches = cut(pictures).flatten(0, 1).contiguous()
        rows = patches.numpy().view(f"V{patches.shape[1]}").ravel()
        _, first, counts = np.unique(rows, return_index=True, return_counts=True)
        points, weights = patches[torch.from_numpy(first)].float(), torch.from_numpy(counts).float()
        return Codebook(k_means(points, weights, num_codes, generator), float(patches.float().std()))

    def embedding(self) -> Tensor:
        """The codes in units of a pixel's standard deviation, for the distances.  [N, d]

        Two codes at random are then about 2 apart in the metric "mse", whatever the range of the pixels.
        """
        return self.codes / self.deviation

    def encode(self, pictures: Tensor) -> Tensor:
        """Tokens of pictures.  [P, TOKENS] int64"""
        return torch.cdist(cut(pictures).float(), self.codes).argmin(-1) + IMAGE_START

    def decode(self, tokens: Tensor) -> Tensor:
        """Pictures of tokens.  [P, GRID * PATCH, GRID * PATCH, 3] uint8"""
        return join(self.codes[tokens - IMAGE_START]).round().clamp(0, 255).to(torch.uint8)


class Examples(NamedTuple):
    """Moves as tokens, and the boards they are on."""

    before: Tensor  # [E, TOKENS] int64
    move: Tensor  # [E, 1] int64
    after: Tensor  # [E, TOKENS] int64
    boards: list[Board]

    def prompt(self) -> Tensor:
        """What a model is shown.  [E, TOKENS + 1] int64"""
        return torch.cat((self.before, self.move), dim=1)

    def take(self, indices: Tensor) -> Examples:
        """Some of the examples."""
        boards = [self.boards[i] for i in indices.tolist()]
        return Examples(self.before[indices], self.move[indices], self.after[indices], boards)


@dataclass(frozen=True)
class Plan:
    """Boards, codebook and data order, drawn once for both losses."""

    setting: Setting
    codebook: Codebook
    train: Examples
    held_out: Examples
    order: Tensor  # examples of each step  [steps, batch]
    codebook_error: float  # RMS of a pixel of the held-out pictures, 0..255, when encoded and decoded
    num_pictures: int

    @staticmethod
    def draw(setting: Setting, progress: Progress = lambda states: states) -> Plan:
        """The plan that ``setting.seed`` stands for. ``progress`` wraps the states to render."""
        generator = torch.Generator().manual_seed(setting.seed)
        boards = draw_boards(setting.boards + setting.held_out_boards, setting.frozen_share, generator)
        moves = [[(board, *move) for board in part for move in moves_of(board)] for part in _split(boards, setting.boards)]
        judged = torch.randperm(len(moves[1]), generator=generator)[: setting.judged].tolist()
        moves[1] = [moves[1][i] for i in judged]

        states = list(dict.fromkeys((board, tile) for part in moves for board, *move in part for tile in (move[0], move[2])))
        pictures = paint(progress(states))
        trained = set(boards[: setting.boards])
        is_trained = torch.tensor([board in trained for board, _ in states])
        codebook = Codebook.fit(pictures[is_trained], setting.codes, generator)

        tokens = torch.cat([codebook.encode(part) for part in pictures.split(64)])
        number = {state: i for i, state in enumerate(states)}
        train, held_out = (_examples(part, tokens, number) for part in moves)
        order = torch.randint(len(train.move), (setting.steps, setting.batch), generator=generator)
        error = codebook.decode(tokens[~is_trained]).float() - pictures[~is_trained].float()
        return Plan(setting, codebook, train, held_out, order, float(error.square().mean().sqrt()), len(states))


def _split(boards: list[Board], at: int) -> tuple[list[Board], list[Board]]:
    return boards[:at], boards[at:]


def _examples(moves: list[tuple[Board, int, int, int]], tokens: Tensor, number: dict[State, int]) -> Examples:
    before = tokens[[number[board, tile] for board, tile, _, _ in moves]]
    after = tokens[[number[board, to] for board, _, _, to in moves]]
    return Examples(before, torch.tensor([[move] for _, _, move, _ in moves]), after, [move[0] for move in moves])
