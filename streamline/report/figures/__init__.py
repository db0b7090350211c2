"""Figures as Vega-Lite: interactive in a page, and the same data as SVG and PDF for papers."""
