"""Studies: methods tuned with equal effort, then compared on seeds of their own."""
