"""What changes in the course of a run, as a function of the step."""

import math

from pocketclip.recipe.training import TrainSettings


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Linear warm-up over the first share of the run, then a cosine down to the final rate.

    step: 0 for the first one. steps: in the whole run. The last warm-up step has exactly the peak rate.
    """
    warmup = max(1, round(settings.warmup * steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup + 1) / max(1, steps - warmup)
    final = settings.learning_rate * settings.final_learning_rate
    return final + (settings.learning_rate - final) * 0.5 * (1 + math.cos(math.pi * done))


def renewed_share(step: int, steps: int, settings: TrainSettings) -> float:
    """How much a row's new negatives count in the global loss: from 1 down a cosine to the setting by the run's middle.

    Source: Wei et al. 2024, "FastCLIP", section 4.
    """
    done = min(1.0, 2 * step / steps)
    return settings.renewed_share + (1 - settings.renewed_share) * 0.5 * (1 + math.cos(math.pi * done))
