"""What a field of a config says of itself beside its value."""

from types import MappingProxyType

# Metadata of a field that came later: keys of runs leave it out at its default, and so are what they were before.
LATER = MappingProxyType({"later": True})
