"""Suites: what a benchmark run differs in from the defaults. Installed as streamline.benchmarks."""
