"""Timings against peers, results compared first. Installed as streamline.benchmarks.speed."""
