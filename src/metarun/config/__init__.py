"""From words to a validated configuration."""
