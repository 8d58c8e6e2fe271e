"""What a set of measurements gives at one step."""

import time
from collections.abc import Mapping
from typing import Any

from ntkcollapse._precision import in_precision
from ntkcollapse.choices import MEASUREMENTS
from ntkcollapse.training.measurements import ON_PROBE, Measurement, Moment
from ntkcollapse.training.records import checked_values


@in_precision
def measured_values(
    measurements: Mapping[str, Measurement], moments: Mapping[str, Moment], seconds: dict[str, float]
) -> dict[str, Any]:
    """Everything measured, by name; each measurement's time is added to `seconds`.

    moments: of the samples that last layer and kernels are measured on, by what the names of the values begin with; the
    one without a name serves the other measurements too.
    """
    values: dict[str, Any] = {}
    for name, measurement in measurements.items():
        began = time.perf_counter()
        # Those of the table share some of their values.
        taken = () if measurement is MEASUREMENTS.get(name) else values
        for prefix in moments if name in ON_PROBE else ("",):
            # Waits for what is computed: else its time would count as another's.
            checked = checked_values(name, measurement(moments[prefix]), taken)
            values |= {prefix + key: value for key, value in checked.items()}
        seconds[f"measuring_{name}"] += time.perf_counter() - began
    return values
