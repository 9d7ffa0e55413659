"""Everything that is data: operations, histories, features, and what follows from data alone."""
