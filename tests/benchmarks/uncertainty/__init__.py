"""Uncertainty, measured: scores, calibration, ensembles, unknown inputs, shift, conformal sets.

    python -m tests.benchmarks.uncertainty [--only SECTION ...] [--seeds N] [--root FOLDER]
                                           [--json FILE] [--processes N]

Every section is a file of its own with ``TITLE``, ``NEEDS_ROOT`` (whether it reads the class
folders of JPEG files that ``--root`` names), ``measure(run)``, which gives what goes into the JSON
file, and ``table(result)``, which makes text of it. Seeds are paired: all methods of a row share
the first network of their seed, its validation rows and its test rows.

A run may be cut: the JSON file is written after every seed, and a later run with the same file
takes over what stands there with the same settings. It does not see that code changed: delete the
file then.
"""

#: In the order in which they run; each a module of this package.
SECTIONS = ("digits", "cifar", "conformal", "masks", "ensembles", "peers")
