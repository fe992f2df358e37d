"""Results: statistics over records, tables and the report."""
