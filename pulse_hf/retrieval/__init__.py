"""Who is similar to a user, and which items a decision is made among."""
