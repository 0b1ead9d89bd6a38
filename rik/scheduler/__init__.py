"""The only writer of cluster state: validates, decides purely, makes it durable, and only then answers and orders."""
