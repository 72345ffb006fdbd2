"""What people read of records: tables for the terminal, markdown, CSV and JSON."""
