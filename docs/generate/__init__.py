"""The generators of pages and tables: ``python -m docs.generate.NAME``, from the root of the repository."""
