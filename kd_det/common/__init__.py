"""What every other package here uses, and what uses none of them: errors, files, readers, configurations, signals."""
