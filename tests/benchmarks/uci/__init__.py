"""Regression on the sets and splits of the first paper on MC dropout, against its own table.

    python -m tests.benchmarks.uci --root DIR --dataset NAME [--splits N] [--json FILE]
        [--columns NAME ...] [--processes N]

Columns are paired by split: the published experiment (one variance for all rows), a head for the
variance without dropout, **with dropout at prediction** (the headline) and an ensemble of these.
Settings are chosen by the training rows of each split, by one rule for every column's grid and for
every set; test rows are scored once. ``docs/uci.md`` holds the table and the procedure.

The JSON file holds ``dataset`` and the headline's ``rmse``, ``log_likelihood`` and ``seconds``, a
number for each split, in the target's units and in nats; the other columns beside them under their
names.
"""
