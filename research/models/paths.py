"""What the parameters of a model are called: by these paths optimisers, sharding, checkpoints and weights know them."""

import re
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64

BLOCK = re.compile(r"(?P<stack>.*)blocks/(?P<place>\d+)/")


def path_of(path: tuple[Any, ...]) -> str:
    """The path of a leaf, its parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, parts joined by slashes."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def layers(tree: Any) -> dict[str, tuple[str, Int64[np.ndarray, " l"]]]:
    """Of each leaf in a block, by its path: the path of its stack, and which layer each entry of its leading axis is.

    Layer i of a pattern of p blocks is the (i // p)-th of those at its place.
    """
    found = {path: match for path in named(tree) if (match := BLOCK.match(path)) is not None}
    places: dict[str, int] = {}
    for match in found.values():
        places[match["stack"]] = max(places.get(match["stack"], 0), int(match["place"]) + 1)
    return {
        path: (
            found[path]["stack"],
            np.arange(leaf.shape[0]) * places[found[path]["stack"]] + int(found[path]["place"]),
        )
        for path, leaf in named(tree).items()
        if path in found
    }
