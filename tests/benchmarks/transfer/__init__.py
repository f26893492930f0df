"""Transfer, measured: fine-tuning, pretraining without labels, and what freezing does and costs.

    python -m tests.benchmarks.transfer [--only SECTION ...] [--seeds N] [--root FOLDER]
                                        [--json FILE] [--processes N]

Every section is a file of its own with ``TITLE``, ``NEEDS_ROOT`` (whether it reads the class
folders of JPEG files that ``--root`` names), ``measure(run)``, which gives what goes into the JSON
file, and ``table(result)``, which makes text of it. Seeds are paired: all that is compared in a row
has the same labelled images and the same number of tuning trials, on images and seeds of their own.

A run may be cut: the JSON file is written after every single training, and a later run with the
same file takes over what stands there with the same settings. It does not see that code changed:
delete the file then.
"""

#: In the order in which they run; each a module of this package.
SECTIONS = ("digits", "pairs", "unlabelled", "ddp", "schedulers", "cost")
