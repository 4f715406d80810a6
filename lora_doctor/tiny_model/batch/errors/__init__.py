"""What forwards raise, and how a draft is corrected by it."""
