"""``python -m stablelightning``: the same as the ``stablelightning`` command."""

import sys

from stablelightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
