"""What everything may use: the cache folder, bounded reading, escaping, addresses, plugins. Imports `errors` alone."""
