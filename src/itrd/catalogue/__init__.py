"""The catalogue of methods: one set of facts behind ``itrd methods`` and docs/methods.md.

Everything comes from the methods' classes, from the published tables and from ``recipes/loss_overhead.json``.

    python -m itrd.catalogue docs/methods.md      writes the page anew; without a file name it is printed
"""

from itrd.catalogue.facts import EXAMPLE, MethodFacts, Setting, all_facts, facts
from itrd.catalogue.overhead import Cost, Measurement, measurements
from itrd.catalogue.page import make_page

__all__ = [
    "EXAMPLE",
    "Cost",
    "Measurement",
    "MethodFacts",
    "Setting",
    "all_facts",
    "facts",
    "make_page",
    "measurements",
]
