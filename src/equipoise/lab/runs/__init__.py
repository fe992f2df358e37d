"""One run: a problem trained by a method under a seed."""
