"""Settings of all tests of the neuron."""

from hypothesis import settings

# A busy machine is slow now and then; that is no property of the code under test.
settings.register_profile("neuron", deadline=None)
settings.load_profile("neuron")
