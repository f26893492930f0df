"""Run the benchmark; see the package for its arguments."""

from tests.benchmarks.sections import run_sections
from tests.benchmarks.transfer import SECTIONS

if __name__ == "__main__":
    raise SystemExit(run_sections("tests.benchmarks.transfer", SECTIONS))
