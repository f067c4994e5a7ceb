"""Giving things back to a GPU that is lost.

After a sticky error every call fails, those that free something too, and the driver itself frees
all of it when the process ends. A node must still be able to clean up, and to say what happened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from edge_perception.errors import CudaError

_LOG = logging.getLogger(__name__)


@contextmanager
def giving_back(what: str) -> Iterator[None]:
    """Free something; a sticky error ends the body and is logged, others are raised."""
    try:
        yield
    except CudaError as error:
        if not error.sticky:
            raise
        _LOG.warning("%s: lost with the GPU: %s", what, error)
