"""Loss and accuracy: on the whole training and test part, and on the batch of the last step."""

from functools import partial
from typing import Any

import numpy as np

from ntkcollapse.training.evaluation import evaluate
from ntkcollapse.training.measurements.moment import Moment
from ntkcollapse.training.step import StepRecord


def split(part: str, moment: Moment) -> dict[str, Any]:
    """Loss and accuracy on all of a part, in evaluation mode, on the scale of the training loss."""
    loss, accuracy = evaluate(moment.network, moment.variables, getattr(moment.splits, part), moment.loss)
    return {f"{part}_loss": loss, f"{part}_accuracy": accuracy}


train_split = partial(split, "train")
test_split = partial(split, "test")


def batch(moment: Moment) -> dict[str, Any]:
    """Loss, accuracy and gradient norm on the batch of the last step, before it, in training mode; NaN at the start."""
    record = moment.record or StepRecord(*(np.float32("nan"),) * 3)  # pyright: ignore[reportArgumentType]
    return {"batch_loss": record.loss, "batch_accuracy": record.accuracy, "gradient_norm": record.gradient_norm}
