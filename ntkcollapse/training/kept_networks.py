"""Whether a saved run is of the data at hand."""

import os
from collections.abc import Mapping

from ntkcollapse.checkpoints import Checkpoint


def check_data(saved: Checkpoint, digests: Mapping[str, str], where: str | os.PathLike) -> None:
    """Whether a run was trained on these data.

    Raises:
        ValueError: on others.
    """
    for part, said in (("train", "training"), ("test", "test")):
        if part in digests and saved.notes["data"][part] != digests[part]:
            raise ValueError(
                f"data: the {said} set differs from the one that the run in {where} was started on; resume with the "
                "same files."
            )
