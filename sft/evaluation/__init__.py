"""What answers are worth: metrics with intervals, comparisons, tables and the page."""
