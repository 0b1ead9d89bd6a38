"""Where cluster state is durable. The scheduler is the only writer; the api reads history and post-mortems."""
