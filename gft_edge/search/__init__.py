"""Cost models, the search of token budgets, the Pareto front."""
