"""What the parameters of a model are called: by these paths optimisers, sharding, checkpoints and weights know them."""

from typing import Any

import jax


def path_of(path: tuple[Any, ...]) -> str:
    """The path of a leaf, its parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, parts joined by slashes."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
