"""The examples in the docstrings give what they say."""

import doctest
import importlib
import pkgutil

import pytest
import vggnet

FINDER = doctest.DocTestFinder(exclude_empty=True)


def modules():
    """Modules of the package that have examples."""
    names = [found.name for found in pkgutil.walk_packages(vggnet.__path__, "vggnet.")]
    for name in ["vggnet", *(name for name in names if not name.endswith(("__main__", "_C", "_cuda")))]:
        module = importlib.import_module(name)
        if any(test.examples for test in FINDER.find(module, name)):
            yield name


@pytest.mark.parametrize("name", list(modules()))
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where an example may write
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed
