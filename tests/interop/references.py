"""What references of the older models share: NumPy in float64, written from the papers, and checkpoints on disk."""

import json

import numpy as np
from safetensors.numpy import save_file

from research.attention.masks import Slots
from research.batch import Batch, Tokens


def random(shapes, seed=0):
    """An array for each name; scales of norms are near one."""
    rng = np.random.default_rng(seed)

    def one(name, shape):
        draw = rng.standard_normal(shape) * 0.3
        return (draw + ("norm" in name and name.endswith("weight"))).astype(np.float32)

    return {name: one(name, shape) for name, shape in shapes.items()}


def saved(folder, config, arrays):
    """A folder as it is published."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "model.safetensors")
    return folder


def batch(ids, slots):
    """A batch that only the ids and the slots of matter."""
    ids = np.asarray(ids, np.int32)
    return Batch(Tokens(ids, slots), ids, np.ones(ids.shape, np.float32))


def corrupted(lines):
    """Blank infilling: slots of lines, each the length of a corrupted text and, in the order they follow it, the place
    of each mask token and the length of its span.
    """
    length = max(text + sum(size for _, size in spans) for text, spans in lines)
    shape = (len(lines), length)
    segment, prefix, coords = (
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
        np.zeros((*shape, 2), np.int32),
    )
    for row, (text, spans) in enumerate(lines):
        places = [(i, 0) for i in range(text)]
        places += [(mask, 1 + i) for mask, size in spans for i in range(size)]
        coords[row, : len(places)] = places
        segment[row, : len(places)] = 1
        prefix[row, :text] = True
    position = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    return Slots(position, segment, prefix, coords=coords, start=0)


def visible_prefix(slots, row):
    """Which keys a real query sees: those before it, itself and the whole prefix."""
    n = int((slots.segment[row] != 0).sum())
    return (np.arange(n)[:, None] >= np.arange(n)) | slots.prefix[row, :n]


class Weights:
    """Arrays by name, and layers made of them."""

    def __init__(self, arrays, epsilon=1e-5):
        self.arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
        self.epsilon = epsilon

    def __getitem__(self, name):
        return self.arrays[name]

    def linear(self, name, x):
        out = x @ self[f"{name}.weight"].T
        return out + self[f"{name}.bias"] if f"{name}.bias" in self.arrays else out

    def layer_norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return centred / deviation * self[f"{name}.weight"] + self[f"{name}.bias"]

    def rms_norm(self, name, x):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.epsilon) * self[f"{name}.weight"]


def gelu(x):
    """Its approximation by tanh (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x):
    return np.log(softmax(x))


def attention(q, k, v, visible):
    """[n h d] each; heads side by side, [n h * d]."""
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1])
    out = np.einsum("hij,jhd->ihd", softmax(np.where(visible, scores, -np.inf)), v)
    return out.reshape(len(q), -1)
