"""The `refbfr` command: one file a command; everything heavy is imported when a command runs, never to show help."""
