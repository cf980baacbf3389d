"""The order of the tests."""

import pytest

# The rehearsal first: it takes as long as many others, which run beside it (`make test`). Then what takes minutes, so
# that no lane is left alone with it at the end.
FIRST = ("rehearsal", "course", "several_processes", "study", "released_profile", "judging", "cost")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they come."""
    place = {f"test_{name}.py": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(FIRST)))
