"""The page of ``metarun serve``: show it a few pictures of each class, adapt, ask about others."""
