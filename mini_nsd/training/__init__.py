"""How the small models in mini_nsd/models are trained: one module per role, over shared data and one shared loop."""
