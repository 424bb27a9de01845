r"""Training of learned priors: from images to a folder that `emprior.load_prior` takes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from emprior._files import sole
from emprior.train.check import check_config
from emprior.train.config import Config
from emprior.train.data import as_public, load_images
from emprior.train.distributed import World, place
from emprior.train.export import export_prior, held_out_images
from emprior.train.trainer import Trainer

__all__ = ["Config", "Trainer", "as_public", "check_config", "export_prior", "load_images", "run_training"]


def run_training(
    config: Config,
    out: str | Path,
    *,
    device: str = "cpu",
    progress: bool = False,
    seconds: float | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    r"""Trains a prior, or goes on with one, and exports it to `out/prior` once all iterations are done.

    `out` holds the checkpoint, `log.jsonl` and grids of samples. Started again, the training goes on from
    the checkpoint as if it had not stopped. Under `torchrun` each process calls this with the same arguments.

    Arguments:
        config: The settings.
        out: The folder.
        device: `"cpu"` or `"cuda"`.
        progress: Whether to show a progress bar.
        seconds: About how long to train before stopping with a checkpoint.
        fresh: Whether to start anew; a checkpoint, a log and samples that are there are replaced.

    Returns:
        `out`; the `iterations` and `images` done, over all runs; `seconds` of training, over all runs; whether it
        is `finished`, and why it `stopped`: `"finished"`, `"seconds"` or `"SIGTERM"`; `resumed`; and the folder of
        the `prior`, or None.

    Raises:
        ValueError: A setting, the data or the checkpoint is wrong, or another process is training in `out`.
        FloatingPointError: The loss is not finite.
        KeyboardInterrupt: It was interrupted; the checkpoint is complete.
    """
    check_config(config, World.expected_size())
    out, chosen = Path(out), place(device)
    images = load_images(config.data.source, config.data.size)
    held_out_images(config, tuple(images.shape[1:]), 1)
    alone = sole(out, "training") if World.is_first() else nullcontext()
    with alone:
        try:
            trainer = Trainer(config, images, out, chosen)
            resumed = False if fresh else trainer.resume()
            if config.train.start and not resumed:
                trainer.start()
            if fresh:
                trainer.discard()
            reason = trainer.run(progress, seconds)
        finally:
            World.leave()
        finished = trainer.step >= trainer.total
        if finished and trainer.world.rank == 0:
            export_prior(config, out, out / "prior", images=images, device=chosen)
    return {
        "out": str(out),
        "iterations": trainer.step,
        "images": trainer.seen,
        "seconds": trainer.seconds,
        "finished": finished,
        "stopped": reason,
        "resumed": resumed,
        "prior": str(out / "prior") if finished else None,
    }
