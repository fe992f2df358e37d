"""What writes the generated parts of the pages: ``python -m docs.generate.NAME``, from the root of the repository."""
