"""For all tests: what hypothesis finds does not depend on how busy the machine is."""

from hypothesis import settings

settings.register_profile("sagacity", deadline=None)
settings.load_profile("sagacity")
