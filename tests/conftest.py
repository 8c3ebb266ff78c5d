"""Settings of all tests."""

import os

from hypothesis import settings

# A busy machine is slow now and then: that is no property of the code under test. Where a change is
# judged, the examples are the same each time; elsewhere, every run looks at new ones.
settings.register_profile("cortex", deadline=None, derandomize=bool(os.environ.get("CI")))
# Before every commit: fewer examples each time, other ones each time.
settings.register_profile("quick", settings.get_profile("cortex"), max_examples=25)
settings.load_profile("cortex")
