"""What tests share: clients, stand-ins for upstreams, processes, databases."""
