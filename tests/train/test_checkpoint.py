from pathlib import Path

import pytest
import torch

from pocketclip.errors import CheckpointError
from pocketclip.train import checkpoint as module
from pocketclip.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def a_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"weights": torch.full((1000,), float(step))}, {"rows": 3})


def test_the_newest_is_kept_alone(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, a_checkpoint(step))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.tensors["weights"][0].item(), found.description["rows"]) == (100, 100.0, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000100"]


def test_a_failed_save_keeps_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, a_checkpoint(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("sha256", "whole_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(module, place, full)
            with pytest.raises(CheckpointError, match=r"No space left on device.*step-00000001 is kept"):
                save_checkpoint(tmp_path, a_checkpoint(2))
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1


def test_one_flipped_byte_is_found(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, a_checkpoint(5))
    state = tmp_path / "step-00000005" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt: damaged.*delete step-00000005"):
        load_checkpoint(tmp_path)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    save_checkpoint(tmp_path, a_checkpoint(5))
    folder = tmp_path / "step-00000005"
    (folder / "state.pt").write_bytes(pickle.dumps(Evil()))
    import json

    from pocketclip.files import sha256

    (folder / "checkpoint.json").write_text(json.dumps({"step": 5, "sha256": sha256(folder / "state.pt")}))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch makes of a file that cannot grow, as a full disk gives it."""
    import io

    save_checkpoint(tmp_path, a_checkpoint(1))

    class FullFile(io.BytesIO):
        def write(self, data: object) -> int:
            if self.tell() + len(data) > 1000:  # type: ignore[arg-type]
                raise OSError(28, "No space left on device")
            return super().write(data)  # type: ignore[arg-type]

    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: FullFile() if self.name == "state.pt" else original(self, *a, **k)
    )
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\); step-00000001 is kept"):
        save_checkpoint(tmp_path, a_checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
