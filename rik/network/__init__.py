"""Published ports: choosing and binding them, naming who holds them, and leading their traffic into instances."""
