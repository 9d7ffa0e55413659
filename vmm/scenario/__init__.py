"""All data: operations, histories, features, and everything derived from data alone."""
