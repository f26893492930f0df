"""What initialization and the doctor are worth: training on real digits, and theory beside it.

    python -m tests.benchmarks.stability [--json FILE] [--figure FILE] [--rows NAME ...]
        [--seeds N] [--epochs-scale X] [--processes N] [--quick]

Every column of a row sees the same split, the same optimizer, the same number of epochs and, seed
by seed, the same batches in the same order. Nothing is chosen by the test images: the columns are
what they are, and each is judged after its last epoch.
"""
