"""What pytest leaves out."""

collect_ignore = ["src/equipoise/integrations/pina.py"]  # its example runs in tests/clients, where PINA is installed
