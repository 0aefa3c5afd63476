"""The lists that vectors of memories' words lie in where a namespace is large: centroids of public text.

They ship beside the calibrations. `python -m mnemos.memory.word_lists FILE...` makes them anew, from
conversation files (`memories`) and from books or essays (`text`): the same ones from the same files.
"""

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch

from mnemos.attention.embedder import Embedder, embedder_named
from mnemos.memory.vectors_held import Codes

_OF_EACH = 1000  # texts of a file at most, evenly spread
_PASSAGE = 300  # characters of a piece of a book
_SEED = 0


@cache
def lists_of(name: str, dims: int) -> Codes:
    """The centroids `[lists, dims]` that ship for an encoder; a single list where there are none."""
    known = files("mnemos.attention").joinpath("calibrations").joinpath(f"{name}.lists.npy")
    if known.is_file():
        with as_file(known) as path:
            found: Codes = np.load(path, allow_pickle=False)
        if found.ndim == 2 and found.dtype == np.int8 and found.shape[1] == dims:
            return found
    return np.zeros((1, dims), dtype=np.int8)


def texts_of(path: Path) -> Iterator[str]:
    """What is said in a conversation file, or the passages of a file of books."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            for each in entry.get("memories", ()):
                yield f"{each['speaker']}: {each['text']}" if each.get("speaker") else each["text"]
            text = entry.get("text", "")
            yield from (text[at : at + _PASSAGE] for at in range(0, len(text), _PASSAGE))


def vectors_of(path: Path, embedder: Embedder, most: int = _OF_EACH) -> Codes:
    """Vectors `[texts, dims]` of at most so many of a file's texts."""
    texts = list(texts_of(path))
    chosen = texts[:: max(1, -(-len(texts) // most))]
    return np.concatenate([embedder.memory(text).numpy() for text in chosen])


def made_lists(paths: Sequence[Path], embedder: Embedder) -> Codes:
    """Centroids of the texts of those files."""
    from mnemos.memory.lists import centroids_of

    codes = torch.from_numpy(np.concatenate([vectors_of(path, embedder) for path in paths])).float()
    centroids: Codes = centroids_of(torch.nn.functional.normalize(codes, dim=1), _SEED).numpy()
    return centroids


def main(arguments: Sequence[str]) -> int:
    """Writes `NAME.lists.npy` into the working directory."""
    embedder = embedder_named()
    if embedder is None or not arguments:
        print(__doc__, "The sentence encoder has to be here.", file=sys.stderr)
        return 2
    made = made_lists([Path(each) for each in arguments], embedder)
    np.save(f"{embedder.name}.lists.npy", made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
