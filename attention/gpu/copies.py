"""Pages on their way from host memory to a pool, layer by layer, on a stream beside the computation.

Layer 0 is queued first and has a mark of its own, so that reading it begins while later layers are still
under way. Runs of neighbouring pages go by one asynchronous copy each; short runs go together through the
gather kernel, where that is faster on this machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mnemos.attention.gpu.streams import CopyStream, Mark
from mnemos.attention.kernels import dispatch


@dataclass(frozen=True, slots=True)
class Move:
    """Pages of one memory from a buffer on the host to a pool."""

    source: Callable[[int], Tensor]  # of a layer, [pages, page_bytes], pinned for a CUDA device
    places: Sequence[int]  # pages there
    pages: Sequence[int]  # pages of the pool
    fill: Callable[[int], None] | None = None  # writes a layer's pages there first


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring pages that are neighbours on both sides."""

    source: Callable[[int], Tensor]
    place: int
    page: int
    count: int


class LayerCopies:
    """The same pieces for each layer of a pool. Its methods run on the stream of the copies."""

    def __init__(self, pieces: Sequence[Piece], pool: Tensor, *, gather_below: int) -> None:
        self._pool = pool
        self.copied, self.gathered = split_pieces(pieces, pool.shape[2], gather_below)
        self._lists: dict[Callable[[int], Tensor], tuple[Tensor, int]] = {}  # and bytes of the longest

    def prepare(self) -> None:
        """Bring the lists of the gather kernel to the device, once for all layers."""
        size, cuda = self._pool.shape[2], self._pool.is_cuda
        for source, pieces in self.gathered.items():
            rows = [[piece.place * size, piece.page * size, piece.count * size] for piece in pieces]
            listed = torch.tensor(rows, pin_memory=cuda)  # int64
            longest = max(row[2] for row in rows)
            self._lists[source] = (listed.to(self._pool.device, non_blocking=True), longest)

    def copy(self, layer: int) -> None:
        target = self._pool[layer]  # [pages, page_bytes]
        for piece in self.copied:
            pages = piece.source(layer)[piece.place : piece.place + piece.count]
            target[piece.page : piece.page + piece.count].copy_(pages, non_blocking=True)
        for source, (listed, longest) in self._lists.items():
            if target.is_cuda:
                from mnemos.attention.kernels.page_gather import gather_listed  # Triton is imported late

                gather_listed(source(layer).view(-1), listed, longest, target.view(-1))
            else:
                dispatch.page_gather(source(layer).view(-1), listed, target.view(-1))


def copy_layers(
    stream: CopyStream, moves: Sequence[Move], pool: Tensor, *, gather_below: int
) -> tuple[Mark, ...]:
    """Queue the copies of all layers of `pool [layers, pages, page_bytes]`; a mark behind each layer.

    `gather_below` is a run's length in bytes under which it goes through the gather kernel.
    """
    copies = LayerCopies(pieces_of(moves), pool, gather_below=gather_below)
    stream.submit(copies.prepare)
    marks: list[Mark] = []
    for layer in range(len(pool)):
        for move in moves:
            if move.fill is not None:
                move.fill(layer)
        stream.submit(partial(copies.copy, layer))
        marks.append(stream.mark())
    return tuple(marks)


def pieces_of(moves: Sequence[Move]) -> list[Piece]:
    """The fewest copies: pages that follow one another on both sides go together, across memories too."""
    pieces: list[Piece] = []
    for move in moves:
        for place, page in zip(move.places, move.pages, strict=True):
            last = pieces[-1] if pieces else None
            if (
                last is not None
                and last.source == move.source
                and (last.place + last.count, last.page + last.count) == (place, page)
            ):
                pieces[-1] = Piece(last.source, last.place, last.page, last.count + 1)
            else:
                pieces.append(Piece(move.source, place, page, 1))
    return pieces


def split_pieces(
    pieces: Sequence[Piece], page_bytes: int, gather_below: int
) -> tuple[list[Piece], dict[Callable[[int], Tensor], list[Piece]]]:
    """Pieces for a copy each, and those of each source that the gather kernel takes in one launch: two or
    more, of under `gather_below` bytes.
    """
    copied: list[Piece] = []
    short: dict[Callable[[int], Tensor], list[Piece]] = {}
    for piece in pieces:
        if piece.count * page_bytes < gather_below:
            short.setdefault(piece.source, []).append(piece)
        else:
            copied.append(piece)
    gathered = {source: found for source, found in short.items() if len(found) > 1}
    copied += [piece for found in short.values() if len(found) == 1 for piece in found]
    return copied, gathered
