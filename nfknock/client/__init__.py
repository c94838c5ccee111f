"""The client: what sends knocks. Standard library only, so that it runs wherever Python does."""
