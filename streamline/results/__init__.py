"""What a run leaves: records, paired comparisons, tables, figures, reports."""
