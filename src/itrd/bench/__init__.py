"""The benchmark: cells to fill, a ledger of runs, and what the ledger says.

A *track* (:mod:`~itrd.bench.tracks`) is a file that says what is trained; a *cell* (:mod:`~itrd.bench.cells`) is
one run of it: teacher, student, method, seed. A runner (:mod:`~itrd.bench.runner`) claims cells
(:mod:`~itrd.bench.claims`), trains them and writes one record each into the ledger (:mod:`~itrd.bench.ledger`).
Every table and the report are derived from the ledger and from nothing else.
"""
