"""What a run logs, for TensorBoard too: RUN/tensorboard. Needs the extra `tensorboard`."""

import importlib.util
from pathlib import Path
from typing import Any, Self

from pocketclip.errors import TrainingError


def require_tensorboard() -> None:
    """Raise TrainingError where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise TrainingError(
            "train.tensorboard = true needs the extra: pip install 'pocketclip[tensorboard]'; or leave the setting out"
        )


class TensorBoard:
    """Scalars of the lines of metrics.jsonl, training/NAME, and of evaluations.jsonl, evaluation/NAME/SPLIT.

    step: the run's at this start; what an earlier process has written of later ones is hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Add every number of a line."""
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                tag = f"evaluation/{name}/{line['split']}" if "split" in line else f"training/{name}"
                self._writer.add_scalar(tag, value, line["step"])

    def flush(self) -> None:
        """Give all that was written to the system."""
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
