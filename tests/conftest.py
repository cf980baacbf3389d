"""The order of the tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The rehearsal first: it takes as long as all others, which run beside it (`make test`)."""
    items.sort(key=lambda item: item.path.name != "test_rehearsal.py")
