"""Checkpoints of a run: the train state and the place in the data, by Orbax, atomic and resumable."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from research.training.step import TrainState


class Checkpoints:
    """The checkpoints below one folder, the latest `keep` of them.

    Use it as a context manager: leaving it waits until what was saved is on the disk.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self._manager = ocp.CheckpointManager(
            folder.absolute(),  # Orbax fails in the background on a relative path
            item_names=("state", "data"),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: Any) -> None:
        """Save the state and the data iterator's (JSON) state under the state's step, if that is new."""
        step = int(state.step)
        if step == self.latest:
            return
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave({"state": data}))
        self._manager.save(step, args=args)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, Any]:
        """The newest (or that step's) state, shaped and placed like `like`, and the data iterator's state.

        Raises:
          FileNotFoundError: there is none.
        """
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f"no checkpoint below {self._manager.directory}; train first")
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    item=abstract,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                ),
                data=ocp.args.JsonRestore(),
            ),
        )
        return restored.state, restored.data["state"]  # ty: ignore[missing-union-attribute]
