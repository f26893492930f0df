"""Control, measured: bad batches, the finder, optimizers and schedules, small and fast models.

    python -m tests.benchmarks.control [--only SECTION ...] [--seeds N] [--json FILE]

Every section is a file of its own with ``TITLE``, ``measure(seeds)``, which gives what goes into
the JSON file, and ``table(result)``, which makes text of it. Seeds are paired: all that is compared
in a row starts from the same weights and sees the same batches.
"""

#: In the order in which they run; each a module of this package.
SECTIONS = (
    "bad_batches",
    "one_bad_rank",
    "false_alarms",
    "overhead",
    "adding",
    "finder",
    "optimizers",
    "sparse",
    "folding",
)
