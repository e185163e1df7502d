"""What tests against other libraries share."""

from tests.convnextv2.conftest import one_thread

__all__ = ["one_thread"]
