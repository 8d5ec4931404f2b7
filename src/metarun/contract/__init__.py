"""What metarun promises of every method, as functions: ``metarun check --contract`` runs them on a user's, tests/contract on our own."""
